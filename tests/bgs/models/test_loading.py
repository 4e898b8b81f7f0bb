"""`bgs.load`: one call for runs, saved embedders and models of transformers, and errors that say what is known."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

import bgs
from bgs.models import BACKBONES, Embedder, HeadConfig, LoraSettings, apply_lora
from bgs.models.backbone import backbone_class
from bgs.models.lora import adapter_parameters

VIDEO = [name for name in BACKBONES if name != "text"]


@pytest.fixture
def saved(small, tmp_path):
    embedder = Embedder(small("videomae"), HeadConfig("linear", dim=5)).eval()
    embedder.save(tmp_path / "run/model")
    return embedder


def test_a_run_and_the_embedder_inside_it(saved, batch_for, tmp_path):
    batch = batch_for(saved.backbone)
    for source in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "run/model"):
        model, preprocess = bgs.load(source)
        assert preprocess == saved.preprocess and torch.equal(model(batch), saved(batch))
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
        assert model.digest() == saved.digest()


@pytest.mark.parametrize("name", VIDEO)
def test_a_model_of_transformers_is_recognised(name, small, batch_for, tmp_path):
    backbone = small(name)
    backbone.model.save_pretrained(tmp_path)
    model, preprocess = bgs.load(tmp_path)
    assert model.backbone.name == name and model.head_config.kind == "none"
    assert (preprocess.frames, preprocess.height) == (backbone.preprocess.frames, backbone.preprocess.height)
    batch = batch_for(backbone)
    expected = torch.nn.functional.normalize(backbone.embed(batch), dim=-1)
    torch.testing.assert_close(model(batch), expected)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_clip_with_its_text_tower(tmp_path):
    small = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    config = CLIPConfig(
        text_config=small | {"vocab_size": 50, "eos_token_id": 1, "bos_token_id": 0},
        vision_config=small | {"image_size": 32, "patch_size": 16},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    model, _ = bgs.load(tmp_path, frames=3)
    assert (model.backbone.name, model.dim, model.preprocess.frames) == ("clip", 12, 3)


def test_a_sentence_encoder_is_recognised(small, tmp_path):
    backbone = small("text")
    backbone.save_base(tmp_path)
    model, preprocess = bgs.load(tmp_path)
    assert preprocess is None and model.backbone.name == "text"
    found = model.embed(["two people dance", ("a dog", "an old dog")])
    torch.testing.assert_close(found, model([["two people dance"], ["a dog", "an old dog"]]))
    assert found.shape == (2, 24) and model.embed([]).shape == (0, 24)
    with pytest.raises(ValueError, match="expected a sequence of files or captions, got one: 'a dog'"):
        model.embed("a dog")


def test_what_is_not_known_is_said_with_what_is(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    known = sorted(kind for name in VIDEO for kind in backbone_class(name).model_types)
    with pytest.raises(ValueError, match=f"says model_type 'llama'; expected one of {', '.join(known)}, or a sentence"):
        bgs.load(tmp_path)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: no model there; expected a run \(model/embedder.json\)"):
        bgs.load(tmp_path)


def test_a_name_on_the_hub_that_cannot_be_reached():
    with pytest.raises(FileNotFoundError, match=r"'nobody/vjepa2-nothing'; tried no folder .*HF_HUB_OFFLINE is set"):
        bgs.load("nobody/vjepa2-nothing")
    with pytest.raises(FileNotFoundError, match="no folder .*gone, and 'runs/2026/gone' cannot be a hub id"):
        bgs.load("runs/2026/gone")


def test_frames(saved, small, tmp_path):
    small("vjepa2").model.save_pretrained(tmp_path / "plain")
    assert bgs.load(tmp_path / "plain", frames=6)[1].frames == 6
    assert bgs.load(tmp_path / "run", frames=4)[1].frames == 4
    with pytest.raises(ValueError, match="frames: 8, but the embedder in .* was saved with 4 per clip"):
        bgs.load(tmp_path / "run", frames=8)


def test_dtype_and_device(saved, batch_for, tmp_path):
    batch = batch_for(saved.backbone)
    for dtype in ("bfloat16", torch.bfloat16):
        model, _ = bgs.load(tmp_path / "run", dtype=dtype, device="cpu")
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
        assert model(batch).dtype == torch.float32
        torch.testing.assert_close(model(batch), saved(batch), atol=0.05, rtol=0)
    for wrong in ("bfloat", "int8"):
        with pytest.raises(ValueError, match=f"dtype: '{wrong}'; expected a floating-point type"):
            bgs.load(tmp_path / "run", dtype=wrong)


@pytest.fixture
def loaded(small, tmp_path):
    small("clip").model.save_pretrained(tmp_path / "clip")
    return bgs.load(tmp_path / "clip", frames=3)


@pytest.fixture
def paths(tmp_path, write_clip):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 8, 3), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    return [write_clip(tmp_path / f"clip_{k}.mp4", pictures[k]) for k in range(3)]


def test_videos_are_embedded_in_order(loaded, paths):
    model, preprocess = loaded
    clips = torch.stack([preprocess(path) for path in paths])
    expected = model(clips)
    assert len(expected.unique(dim=0)) == 3
    for size in (None, 1, 2):
        found = model.embed(paths, batch_size=size)
        assert found.dtype == torch.float32 and found.shape == (3, 20)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model.embed(clips, batch_size=size), expected)
    torch.testing.assert_close(model.embed([str(paths[2])]), expected[2:])
    assert model.embed([]).shape == (0, 20)


def test_one_video_by_itself_is_an_error(loaded, paths):
    for given in (paths[0], str(paths[0])):
        with pytest.raises(ValueError, match="expected a sequence of files or captions, got one: .*clip_0.mp4"):
            loaded[0].embed(given)


def test_a_video_that_cannot_be_used_is_named(loaded, paths):
    paths[1].write_bytes(b"")
    with pytest.raises(ValueError, match="clip_1.mp4: empty file"):
        loaded[0].embed(paths, batch_size=1)


def test_the_digest_tells_models_apart(small, tmp_path):
    def digest(backbone, **settings):
        torch.manual_seed(0)
        return Embedder(backbone, **{"head": HeadConfig("linear", dim=4)} | settings).eval().digest()

    plain = digest(small("videomae"))
    assert digest(small("videomae")) == plain
    adapted, stronger = (apply_lora(small("videomae"), LoraSettings(rank=2, alpha=alpha)) for alpha in (2, 4))
    with torch.no_grad():
        for parameter, other in zip(
            adapter_parameters(adapted).values(), adapter_parameters(stronger).values(), strict=True
        ):
            parameter.fill_(0.1)
            other.fill_(0.1)
    others = [
        digest(small("videomae", seed=1)),
        digest(small("videomae", layer_norm_eps=1e-3)),
        digest(small("videomae"), head=HeadConfig("none")),
        digest(small("videomae"), normalise=False),
        digest(small("videomae"), pooling="attentive"),
        digest(adapted),
        digest(stronger),
    ]
    assert len({plain, *others}) == 8
