"""Checkpoints in transformers' own format: found, checked, and embedded as the plain model does."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from bgs.models import load_backbone
from bgs.models.vjepa21 import VJEPA21Config, VJEPA21Model

FRAMES, SIZE = 4, 32
SHAPE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KINETICS = ((0.45,) * 3, (0.225,) * 3)
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Case:
    """A kind of checkpoint, and the embedding that the plain model gives for pixels (B, T, 3, H, W)."""

    backbone: str
    build: Callable[[], PreTrainedModel]
    embed: Callable[[Any, Tensor], Tensor]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    frames: int = FRAMES


def vjepa2_config() -> VJEPA2Config:
    predictor = dict(pred_hidden_size=12, pred_num_attention_heads=1, pred_num_hidden_layers=1, num_pooler_layers=1)
    return VJEPA2Config(**SHAPE, crop_size=SIZE, frames_per_clip=FRAMES, num_labels=3, **predictor)


def timesformer_config() -> TimesformerConfig:
    return TimesformerConfig(**SHAPE, image_size=SIZE, num_frames=FRAMES, intermediate_size=48, num_labels=3)


def videomae_config(mean_pooling: bool = True) -> VideoMAEConfig:
    decoder = dict(decoder_hidden_size=24, decoder_num_attention_heads=2, decoder_num_hidden_layers=1)
    return VideoMAEConfig(
        **SHAPE, image_size=SIZE, num_frames=FRAMES, intermediate_size=48, use_mean_pooling=mean_pooling, **decoder
    )


def clip_vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(**SHAPE, image_size=SIZE, patch_size=16, intermediate_size=48, projection_dim=20)


def clip_model() -> CLIPModel:
    vision = dict(**SHAPE, image_size=SIZE, patch_size=16, intermediate_size=48)  # its own projection_dim is 512
    text = dict(**SHAPE, intermediate_size=48, vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))


def clip_frames(encode: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    return torch.stack([encode(clip).mean(0) for clip in pixels])


CASES = {
    "vjepa2": Case(
        "vjepa2",
        lambda: VJEPA2Model(vjepa2_config()),
        lambda m, x: m(pixel_values_videos=x, skip_predictor=True).last_hidden_state.mean(1),
        IMAGENET,
    ),
    "vjepa2-classifier": Case(
        "vjepa2",
        lambda: VJEPA2ForVideoClassification(vjepa2_config()),
        lambda m, x: m.vjepa2(pixel_values_videos=x, skip_predictor=True).last_hidden_state.mean(1),
        IMAGENET,
    ),
    "vjepa21": Case(
        "vjepa21",
        lambda: VJEPA21Model(VJEPA21Config(**SHAPE, crop_size=SIZE, frames_per_clip=FRAMES)),
        lambda m, x: m(pixel_values_videos=x).last_hidden_state.mean(1),
        IMAGENET,
    ),
    "timesformer": Case(
        "timesformer",
        lambda: TimesformerModel(timesformer_config()),
        lambda m, x: m(pixel_values=x).last_hidden_state[:, 0],
        KINETICS,
    ),
    "timesformer-classifier": Case(
        "timesformer",
        lambda: TimesformerForVideoClassification(timesformer_config()),
        lambda m, x: m.timesformer(pixel_values=x).last_hidden_state[:, 0],
        KINETICS,
    ),
    "videomae": Case(
        "videomae",
        lambda: VideoMAEModel(videomae_config()),
        lambda m, x: m(pixel_values=x).last_hidden_state.mean(1),
        IMAGENET,
    ),
    "videomae-classifier": Case(
        "videomae",
        lambda: VideoMAEForVideoClassification(videomae_config()),
        lambda m, x: m.videomae(pixel_values=x).last_hidden_state.mean(1),
        IMAGENET,
    ),
    "videomae-pretraining": Case(
        "videomae",
        lambda: VideoMAEForPreTraining(videomae_config(mean_pooling=False)),
        lambda m, x: m.videomae(pixel_values=x).last_hidden_state.mean(1),
        IMAGENET,
    ),
    "clip-vision": Case(
        "clip",
        lambda: CLIPVisionModelWithProjection(clip_vision_config()),
        lambda m, x: clip_frames(lambda clip: m(pixel_values=clip).image_embeds, x),
        OPENAI,
        frames=8,
    ),
    "clip-both-towers": Case(
        "clip",
        clip_model,
        lambda m, x: clip_frames(lambda clip: m.get_image_features(pixel_values=clip).pooler_output, x),
        OPENAI,
        frames=8,
    ),
}


@pytest.fixture
def random_pixels() -> Callable[[int], Tensor]:
    def make(frames: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, 256, (2, frames, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)

    return make


@pytest.fixture
def noisy() -> Callable[[PreTrainedModel], PreTrainedModel]:
    """Give every weight a value of its own, so that none that is left out or mixed up goes unseen."""

    def fill(model: PreTrainedModel) -> PreTrainedModel:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return fill


@pytest.mark.parametrize("name", CASES)
def test_saved_folder_embeds_as_the_plain_model(name, tmp_path, random_pixels, noisy):
    case = CASES[name]
    plain = noisy(case.build())
    plain.save_pretrained(tmp_path)
    pixels = random_pixels(case.frames)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in case.normalisation)

    state = torch.get_rng_state()
    backbone = load_backbone(case.backbone, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)

    with torch.no_grad():
        expected = case.embed(plain, (pixels / 255.0 - mean) / std)
        found = backbone.embed(pixels)
    assert found.shape == (2, backbone.dim)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.checkpoint.kind == "folder"
    assert backbone.checkpoint.reference == str(tmp_path.resolve())


def test_published_weight_names_of_videomae(tmp_path, random_pixels, noisy):
    """The hub's files have a bias of queries and one of values beside their weights."""
    plain = noisy(VideoMAEForVideoClassification(videomae_config()))
    plain.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    renamed = {}
    for key, value in load_file(file).items():
        for module, bias in (("query.bias", "q_bias"), ("value.bias", "v_bias")):
            key = key.replace(module, bias)
        if not key.endswith("key.bias"):  # which some versions of transformers have, and which changes nothing
            renamed[key] = value
    assert sum(key.endswith(("q_bias", "v_bias")) for key in renamed) == 4
    save_file(renamed, file, metadata={"format": "pt"})
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    pixels = random_pixels(FRAMES)
    with torch.no_grad():
        expected = CASES["videomae-classifier"].embed(plain, (pixels / 255.0 - mean) / std)
        found = load_backbone("videomae", tmp_path).embed(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Make a place in a cache of the hub where the files of a model can be put, as if they had been fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def make(name: str) -> Path:
        commit = "0123456789abcdef0123456789abcdef01234567"
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text(commit)
        return repository / "snapshots" / commit

    return make


def test_hub_checkpoint_brings_its_own_processor_settings(hub):
    folder = hub("someone/videomae")
    VideoMAEModel(videomae_config()).save_pretrained(folder)
    settings = {"size": SIZE + 4, "crop_size": SIZE, "resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": 0.5}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    backbone = load_backbone("videomae", "someone/videomae")
    assert (backbone.checkpoint.kind, backbone.checkpoint.revision) == ("hub", folder.name)
    assert (backbone.preprocess.mean, backbone.preprocess.std) == ((0.1, 0.2, 0.3), (0.5,) * 3)
    assert (backbone.preprocess.resize_to, backbone.preprocess.interpolation) == (SIZE + 4, "bicubic")


def test_hub_checkpoint_without_processor_settings_says_so(hub, caplog):
    VideoMAEModel(videomae_config()).save_pretrained(hub("someone/videomae"))
    backbone = load_backbone("videomae", "someone/videomae")
    assert backbone.preprocess.mean == IMAGENET[0]
    assert "someone/videomae: the published preprocessing of videomae is used" in caplog.text


def test_vjepa2_has_no_predictor(tmp_path):
    VJEPA2Model(vjepa2_config()).save_pretrained(tmp_path)
    assert not [name for name, _ in load_backbone("vjepa2", tmp_path).named_parameters() if "predictor" in name]


@pytest.mark.parametrize("kind", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_processor_settings_of_the_checkpoint_are_used(kind, tmp_path):
    VideoMAEModel(videomae_config()).save_pretrained(tmp_path)
    settings = {
        "do_resize": True,
        "size": {"shortest_edge": SIZE + 8},
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    (tmp_path / kind).write_text(json.dumps(settings))
    preprocess = load_backbone("videomae", tmp_path).preprocess
    assert (preprocess.mean, preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (preprocess.resize_to, preprocess.interpolation) == (SIZE + 8, "bicubic")
    assert preprocess.shape == (FRAMES, 3, SIZE, SIZE)


def test_processor_of_another_size_is_scaled_to_the_model(tmp_path, caplog):
    VideoMAEModel(videomae_config()).save_pretrained(tmp_path)
    settings = {"size": {"shortest_edge": 256}, "crop_size": 224, "resample": 2, "image_mean": 0.5, "image_std": 0.5}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocess = load_backbone("videomae", tmp_path).preprocess
    assert preprocess.shape == (FRAMES, 3, SIZE, SIZE)
    assert "224x224" in caplog.text and "32x32" in caplog.text


@pytest.mark.parametrize("backbone", ["vjepa2", "vjepa21", "timesformer", "clip"])
def test_another_architecture_is_named(backbone, tmp_path):
    VideoMAEModel(videomae_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model_type 'videomae'; backbone '{backbone}' loads '{backbone}'"):
        load_backbone(backbone, tmp_path)


def remove_weight(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weight_is_named(tmp_path):
    TimesformerForVideoClassification(timesformer_config()).save_pretrained(tmp_path)
    remove_weight(tmp_path, "timesformer.encoder.layer.1.temporal_dense.weight")
    with pytest.raises(ValueError, match=r"missing: encoder\.layer\.1\.temporal_dense\.weight$"):
        load_backbone("timesformer", tmp_path)


def test_unknown_weight_is_named(tmp_path):
    TimesformerModel(timesformer_config()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors") | {"encoder.layer.7.extra": torch.zeros(1)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unknown: encoder\.layer\.7\.extra"):
        load_backbone("timesformer", tmp_path)


def test_weight_of_another_shape_is_named(tmp_path):
    TimesformerModel(timesformer_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_frames": FRAMES + 1}))
    with pytest.raises(ValueError, match=r"of another shape: embeddings\.time_embeddings"):
        load_backbone("timesformer", tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    TimesformerModel(timesformer_config()).save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load_backbone("timesformer", tmp_path)


def test_folder_without_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"cannot load checkpoint '{tmp_path}'.*config.json"):
        load_backbone("clip", tmp_path)


@pytest.mark.parametrize("checkpoint", ["./nowhere", "/no/such/folder", "a/b/c", "~/x y"])
def test_neither_folder_nor_hub_id(checkpoint):
    with pytest.raises(FileNotFoundError, match="no folder .*cannot be a hub id"):
        load_backbone("clip", checkpoint)


def test_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="is a file; expected a folder or a hub id"):
        load_backbone("clip", tmp_path / "model.safetensors")


def test_hub_out_of_reach_says_what_was_tried():
    with pytest.raises(FileNotFoundError, match=r"'nobody/nothing-here'; tried no folder .*the hub \(HF_HUB_OFFLINE"):
        load_backbone("vjepa2", "nobody/nothing-here")


def test_unknown_backbone():
    with pytest.raises(ValueError, match="backbone 'resnet' is unknown; expected one of vjepa2, vjepa21, timesformer"):
        load_backbone("resnet")


def test_configuration_fields_are_for_tiny_only(tmp_path):
    with pytest.raises(ValueError, match="hidden_size: configuration fields are for checkpoint 'tiny'"):
        load_backbone("clip", tmp_path, hidden_size=12)
