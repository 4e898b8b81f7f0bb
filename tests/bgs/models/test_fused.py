"""Backbones by fused kernels: the same embeddings and gradients, the same files, and no effect where none is wanted."""

import copy
import warnings
from unittest.mock import patch

import pytest
import torch
from torch import nn

from bgs.models import Backbone, Embedder, LoraSettings, apply_lora, check_adapters_receive_gradient
from bgs.models.fused import run_fused
from bgs.models.lora import adapter_parameters
from bgs_kernels import FallbackWarning, restore
from bgs_kernels.patch import Fused

ALL = ("vjepa2", "vjepa21", "timesformer", "videomae", "clip", "text")


def adapted(backbone: Backbone) -> Backbone:
    """A backbone with an update that is not zero."""
    torch.manual_seed(0)
    apply_lora(backbone, LoraSettings(rank=4, dropout=0.2))
    for parameter in adapter_parameters(backbone).values():
        nn.init.normal_(parameter, std=0.1)
    return backbone


def outcome(backbone, batch):
    """The embeddings and every adapter's gradient."""
    torch.manual_seed(1)
    embeddings = backbone.embed(batch)
    direction = torch.linspace(-1, 1, embeddings.numel()).view(embeddings.shape)
    return embeddings, *torch.autograd.grad((embeddings * direction).sum(), list(adapter_parameters(backbone).values()))


@pytest.fixture(autouse=True)
def no_fallback():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        yield


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_training_goes_on_as_without(name, checkpointing, small, batch_for):
    backbone = adapted(small(name)).train()
    fused = copy.deepcopy(backbone)
    fused.set_gradient_checkpointing(checkpointing)
    run_fused(fused, True)
    check_adapters_receive_gradient(fused, batch_for(fused))
    assert sum(isinstance(module, Fused) for module in fused.modules()) >= len(adapter_parameters(fused)) / 2
    for ours, exact in zip(outcome(fused, batch_for(fused)), outcome(backbone, batch_for(backbone)), strict=True):
        torch.testing.assert_close(ours, exact, rtol=5e-5, atol=5e-5 * exact.detach().abs().max().item())


@pytest.mark.parametrize("name", ALL)
def test_what_is_saved_is_the_same_and_loads_plain(name, small, batch_for, tmp_path):
    embedder = Embedder(adapted(small(name))).eval()
    batch = batch_for(embedder.backbone)
    expected = embedder(batch)  # before anything is saved: embedding leaves its mark on a tokenizer
    embedder.save(tmp_path / "plain")
    run_fused(embedder.backbone, True)
    embedder.save(tmp_path / "fused")
    files = [path for path in (tmp_path / "plain").rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        assert (tmp_path / "fused" / path.relative_to(tmp_path / "plain")).read_bytes() == path.read_bytes()
    loaded = Embedder.load(tmp_path / "fused")
    assert not any(isinstance(module, Fused) for module in loaded.modules())
    assert torch.equal(loaded(batch), expected)
    torch.testing.assert_close(embedder(batch), expected, rtol=1e-4, atol=1e-5)
    restore(embedder)
    assert torch.equal(embedder(batch), expected)


@pytest.mark.parametrize("name", ["vjepa2", "vjepa21"])
def test_positions_follow_the_frames_that_are_given(name, small, batch_for):
    backbone = adapted(small(name)).eval()
    fused = copy.deepcopy(backbone)
    run_fused(fused, True)
    for size in ((64, 32), (32, 48)):
        for each in (backbone, fused):
            each.set_size(size)
        for ours, exact in zip(outcome(fused, batch_for(fused)), outcome(backbone, batch_for(backbone)), strict=True):
            torch.testing.assert_close(ours, exact, rtol=5e-5, atol=5e-5 * exact.detach().abs().max().item())


def test_on_a_cpu_it_is_done_where_it_is_asked_for(small):
    backbone = adapted(small("clip"))
    for wanted in (None, False):
        run_fused(backbone, wanted)
        assert not any(isinstance(module, Fused) for module in backbone.modules())
    run_fused(backbone, True)
    assert any(isinstance(module, Fused) for module in backbone.modules())


def test_on_a_gpu_it_is_done_where_it_can_be(small, caplog):
    backbone = adapted(small("clip"))
    with patch.object(Backbone, "device", torch.device("cuda")):
        run_fused(backbone, False)
        assert not any(isinstance(module, Fused) for module in backbone.modules())
        run_fused(backbone)
        assert any(isinstance(module, Fused) for module in backbone.modules())
        with (
            patch("bgs.models.fused.accelerate", side_effect=ValueError("nothing to replace")),
            caplog.at_level("INFO"),
        ):
            run_fused(backbone)
            assert "clip: not accelerated: nothing to replace" in caplog.text
            with pytest.raises(ValueError, match="nothing to replace"):
                run_fused(backbone, True)


def test_eager_attention_of_vjepa21_still_returns_its_weights(small, batch_for):
    backbone = small("vjepa21").eval()
    backbone.model.config._attn_implementation = "eager"
    pixels = backbone.preprocess.normalise(batch_for(backbone))
    expected = backbone.model(pixel_values_videos=pixels, output_attentions=True).attentions
    run_fused(backbone, True)
    with pytest.warns(FallbackWarning, match="attn_implementation is 'eager'"):
        found = backbone.model(pixel_values_videos=pixels, output_attentions=True).attentions
    assert all(torch.equal(ours, exact) for ours, exact in zip(found, expected, strict=True))
