"""Positions in time and space: TimeSformer on other clip lengths, V-JEPA 2 on any frames, its predictor idle."""

import re

import pytest
import torch
from transformers import TimesformerConfig, TimesformerModel, VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Predictor, VJEPA2RopeAttention

from bgs.models import Embedder, HeadConfig, LoraSettings, apply_lora, load_backbone
from bgs.models.vjepa2 import GridRopeAttention

SHAPE = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=2)
PREDICTOR = dict(pred_hidden_size=12, pred_num_attention_heads=1, pred_num_hidden_layers=1, pred_num_mask_tokens=1)
PATCH = 8


def vjepa2_config(size: int, frames: int = 4) -> VJEPA2Config:
    # Spread weights: with the usual ones, attention is so even that positions would hardly show.
    return VJEPA2Config(
        **SHAPE, **PREDICTOR, crop_size=size, frames_per_clip=frames, patch_size=PATCH, initializer_range=0.3
    )


@pytest.fixture
def checkpoint(tmp_path):
    """A V-JEPA 2 checkpoint made for 32 pixels, with random weights."""
    torch.manual_seed(0)
    VJEPA2Model(vjepa2_config(32)).save_pretrained(tmp_path / "vjepa2")
    return tmp_path / "vjepa2"


def clips(height: int, width: int, frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, frames, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("frames", [2, 4, 6, 8, 12, 16, 5])
def test_timesformer_at_another_length_is_what_transformers_makes_of_it(frames, tmp_path, caplog):
    """transformers interpolates the embeddings as the clip comes in, but its layers go by the configuration."""
    torch.manual_seed(0)
    plain = TimesformerModel(TimesformerConfig(**SHAPE, image_size=32, num_frames=8, intermediate_size=96)).eval()
    torch.nn.init.normal_(plain.embeddings.time_embeddings)
    plain.save_pretrained(tmp_path)
    backbone = load_backbone("timesformer", tmp_path, frames=frames)
    said = f"8 time embeddings stretched over {frames} frames (nearest)" in caplog.text
    assert said == (frames != 8)

    plain.config.num_frames = frames
    batch = clips(32, 32, frames)
    with torch.no_grad():
        expected = plain(pixel_values=backbone.preprocess.normalise(batch)).last_hidden_state[:, 0]
        assert torch.equal(backbone.embed(batch), expected)
    nearest = torch.arange(frames) * 8 // frames
    assert torch.equal(backbone.model.embeddings.time_embeddings, plain.embeddings.time_embeddings[:, nearest])


def test_vjepa2_at_the_trained_size_is_transformers_bit_for_bit(checkpoint):
    plain, backbone = VJEPA2Model.from_pretrained(checkpoint).eval(), load_backbone("vjepa2", checkpoint)
    batch = clips(32, 32)
    with torch.no_grad():
        pixels = backbone.preprocess.normalise(batch)
        expected = plain(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        assert torch.equal(backbone.embed_tokens(batch), expected)
    ours = {name: value for name, value in plain.state_dict().items() if not name.startswith("predictor")}
    assert ours.keys() == backbone.model.state_dict().keys()
    attentions = [layer.attention for layer in backbone.stack]
    assert all(type(module) is GridRopeAttention and module.grid == (4, 4) for module in attentions)


@pytest.mark.parametrize("size", [16, 64])
def test_vjepa2_at_another_size_is_a_model_made_for_that_size(size, checkpoint):
    made = VJEPA2Model(vjepa2_config(size)).eval()
    made.load_state_dict(VJEPA2Model.from_pretrained(checkpoint).state_dict())
    backbone = load_backbone("vjepa2", checkpoint, size=size)
    assert backbone.preprocess.shape == (4, 3, size, size)
    batch = clips(size, size)
    with torch.no_grad():
        pixels = backbone.preprocess.normalise(batch)
        expected = made(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        found = backbone.embed_tokens(batch)
        unaware = VJEPA2Model.from_pretrained(checkpoint).eval()
        wrong = unaware(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
    assert torch.equal(found, expected)
    assert (found - wrong).abs().max() > 0.1


@pytest.mark.parametrize(("height", "width"), [(16, 48), (48, 16), (24, 40)])
def test_vjepa2_on_frames_that_are_not_square(height, width, checkpoint):
    """transformers can place tokens one by one in a larger square, where they have the same rows and columns."""
    backbone = load_backbone("vjepa2", checkpoint, size=[height, width])
    rows, columns, side = height // PATCH, width // PATCH, 8
    frame, row, column = torch.meshgrid(torch.arange(2), torch.arange(rows), torch.arange(columns), indexing="ij")
    places = ((frame * side + row) * side + column).flatten().expand(2, -1)

    made = VJEPA2Model(vjepa2_config(side * PATCH)).eval()
    made.load_state_dict(VJEPA2Model.from_pretrained(checkpoint).state_dict())
    batch = clips(height, width)
    with torch.no_grad():
        hidden = made.encoder.embeddings(backbone.preprocess.normalise(batch))
        for layer in made.encoder.layer:
            hidden = layer(hidden, places)[0]
        assert torch.equal(backbone.embed_tokens(batch), made.encoder.layernorm(hidden))
    assert backbone.stack[0].attention.grid == (rows, columns)


def test_position_ids_by_hand():
    torch.manual_seed(0)
    attention = VJEPA2Model(vjepa2_config(32)).encoder.layer[0].attention
    attention.__class__, attention.grid = GridRopeAttention, (2, 3)
    frame, row, column = attention.get_position_ids(torch.zeros(1, 12, 4))
    assert frame.tolist() == [0] * 6 + [1] * 6
    assert row.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert column.tolist() == [0, 1, 2] * 4
    attention.grid = (attention.grid_size,) * 2
    x, masks = torch.randn(2, 5, SHAPE["hidden_size"]), torch.tensor([[0, 3, 4, 7, 11], [1, 2, 3, 4, 5]])
    ours = attention(x, masks)[0]
    attention.__class__ = VJEPA2RopeAttention
    assert torch.equal(attention(x, masks)[0], ours)


@pytest.mark.parametrize("lora", [False, True])
def test_another_size_is_saved_and_loaded(lora, checkpoint, tmp_path):
    backbone = load_backbone("vjepa2", checkpoint, size=[24, 48])
    if lora:
        apply_lora(backbone, LoraSettings(rank=2))
    embedder = Embedder(backbone, HeadConfig(dim=5)).eval()
    embedder.save(tmp_path / "run")
    loaded = Embedder.load(tmp_path / "run")
    assert loaded.preprocess.shape == (4, 3, 24, 48)
    assert torch.equal(loaded(clips(24, 48)), embedder(clips(24, 48)))


@pytest.mark.parametrize("size", [30, 4, [32, 30], [32], [32, 32, 32], 0, -8])
def test_sizes_that_vjepa2_cannot_take(size, checkpoint):
    expected = re.escape(f"size: vjepa2 takes (height, width) in multiples of its patch size 8, got {size!r}")
    with pytest.raises(ValueError, match=expected):
        load_backbone("vjepa2", checkpoint, size=size)


def test_vjepa21_takes_any_size_too(small, batch_for):
    resized, made = small("vjepa21", crop_size=32, size=48), small("vjepa21", crop_size=48)
    batch = batch_for(made)
    assert torch.equal(resized.embed(batch), made.embed(batch))
    assert small("vjepa21", size=[32, 48]).embed(clips(32, 48)).isfinite().all()
    with pytest.raises(ValueError, match="size: vjepa21 takes .* in multiples of its patch size 16, got 40"):
        small("vjepa21", size=40)


@pytest.mark.parametrize("name", ["timesformer", "videomae", "clip"])
def test_others_take_their_own_size_alone(name, small):
    assert small(name, size=32).preprocess.shape[2:] == small(name, size=[32, 32]).preprocess.shape[2:] == (32, 32)
    with pytest.raises(ValueError, match=rf"size: this {name} checkpoint takes exactly 32x32, got \[32, 48\]"):
        small(name, size=[32, 48])


def test_text_has_no_size(small):
    with pytest.raises(ValueError, match="size: backbone 'text' sees no frames, got 32"):
        small("text", size=32)


def test_predictor_is_dropped_and_never_runs(checkpoint, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the predictor ran")

    monkeypatch.setattr(VJEPA2Predictor, "forward", refuse)
    backbone = load_backbone("vjepa2", checkpoint)
    assert not any("predictor" in name for name, _ in backbone.named_modules())
    apply_lora(backbone)
    for pooling in ("default", "mean"):
        assert backbone.embed(clips(32, 32), pooling).isfinite().all()
    assert backbone.embed_layers(clips(32, 32)).isfinite().all()
    with pytest.raises(AssertionError, match="the predictor ran"):
        VJEPA2Model.from_pretrained(checkpoint)(backbone.preprocess.normalise(clips(32, 32)))
