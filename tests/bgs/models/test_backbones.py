"""What all backbones promise: seeded tiny weights, checked input, frames, gradient checkpointing."""

import re

import pytest
import torch
from torch import nn

from bgs.models import LoraSettings, apply_lora, load_backbone

VIDEO = ("vjepa2", "vjepa21", "timesformer", "videomae", "clip")
ALL = (*VIDEO, "text")


@pytest.mark.parametrize("name", ALL)
def test_tiny_is_seeded_and_leaves_the_random_state(name, small):
    state = torch.get_rng_state()
    first, again, other = (small(name, seed=seed).base_weights() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", VIDEO)
def test_tiny_by_default(name, batch_for):
    backbone = load_backbone(name, "tiny")
    assert backbone.preprocess.shape == (8, 3, 64, 64)
    assert backbone.embed(batch_for(backbone, clips=1)).shape == (1, 96)
    assert not any(isinstance(module, nn.Dropout) and module.p > 0 for module in backbone.modules())


@pytest.mark.parametrize("name", VIDEO)
def test_order_of_frames_matters_except_to_clip(name, small, batch_for):
    backbone = small(name)
    clips = batch_for(backbone)
    with torch.no_grad():
        forward, backward = backbone.embed(clips), backbone.embed(clips.flip(1))
    distance = (forward - backward).abs().max()
    assert distance < 1e-5 if name == "clip" else distance > 1e-5


@pytest.mark.parametrize("name", VIDEO)
def test_clip_is_embedded_by_itself(name, small, batch_for):
    backbone = small(name)
    clips = batch_for(backbone)
    with torch.no_grad():
        together = backbone.embed(clips)
        alone = torch.cat([backbone.embed(clip[None]) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("change", ["dtype", "frames", "pixels", "rank"])
def test_wrong_batch_is_refused(change, small, batch_for):
    backbone = small("videomae")
    good = batch_for(backbone)
    wrong = {"dtype": good.float(), "frames": good[:, :2], "pixels": good[..., :16], "rank": good[0]}[change]
    expected = re.escape("videomae takes uint8 (B, 4, 3, 32, 32), got ")
    with pytest.raises(ValueError, match=expected):
        backbone.embed(wrong)


def test_timesformer_stretches_time_embeddings(small, batch_for, caplog):
    native, stretched = small("timesformer"), small("timesformer", frames=8)
    assert "4 time embeddings stretched over 8 frames" in caplog.text
    assert stretched.preprocess.frames == 8
    kept, repeated = native.model.embeddings.time_embeddings, stretched.model.embeddings.time_embeddings
    assert torch.equal(repeated, kept.repeat_interleave(2, dim=1))
    assert stretched.embed(batch_for(stretched)).isfinite().all()


def test_frame_counts_a_backbone_cannot_take(small):
    with pytest.raises(ValueError, match="vjepa2 takes a multiple of its tubelet size 2, got 5"):
        small("vjepa2", frames=5)
    with pytest.raises(ValueError, match="vjepa21 takes 1 or a multiple of its tubelet size 2, got 5"):
        small("vjepa21", frames=5)
    with pytest.raises(ValueError, match="videomae checkpoint takes exactly 4, got 8"):
        small("videomae", frames=8)
    with pytest.raises(ValueError, match="backbone 'text' sees none, got 8"):
        load_backbone("text", "tiny", frames=8)


@pytest.mark.parametrize("name", ["vjepa2", "vjepa21", "clip"])
def test_other_frame_counts(name, small, batch_for):
    backbone = small(name, frames=6)
    assert backbone.embed(batch_for(backbone)).shape == (3, backbone.dim)


@pytest.mark.parametrize("name", ALL)
def test_checkpointing_changes_memory_not_gradients(name, small, batch_for):
    backbone = apply_lora(small(name), LoraSettings(rank=2, dropout=0.0))
    generator = torch.Generator().manual_seed(0)
    adapters = {key: p for key, p in backbone.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    batch = batch_for(backbone)
    backbone.train()

    def run() -> tuple[dict[str, torch.Tensor], int]:
        """Gradients, and how many activations autograd kept for the backward pass."""
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            loss = backbone.embed(batch).square().sum()
        return dict(zip(adapters, torch.autograd.grad(loss, list(adapters.values())), strict=True)), sum(kept)

    plain, plain_kept = run()
    backbone.set_gradient_checkpointing(True)
    recomputed, recomputed_kept = run()
    backbone.set_gradient_checkpointing(False)
    _, plain_kept_again = run()
    for key, gradient in plain.items():
        assert gradient.any(), key
        torch.testing.assert_close(recomputed[key], gradient, atol=1e-6, rtol=1e-5)
    assert recomputed_kept < 0.5 * plain_kept
    assert plain_kept_again == plain_kept


def test_tiny_refuses_fields_that_a_configuration_lacks() -> None:
    with pytest.raises(ValueError, match="a configuration of videomae has no patchsize"):
        load_backbone("videomae", "tiny", patchsize=8)
