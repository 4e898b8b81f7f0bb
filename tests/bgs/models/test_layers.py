"""Layer-wise embeddings: what transformers' own hidden states give, in one pass, without keeping them."""

import re
import weakref

import pytest
import torch
from torch import nn

from bgs.models import Embedder, HeadConfig, LoraSettings, apply_lora
from bgs.models.layers import layer_numbers
from bgs.models.lora import adapter_parameters

VIDEO = ("vjepa2", "vjepa21", "timesformer", "videomae", "clip")
ALL = (*VIDEO, "text")
DEPTH = 4


def fill_adapters(backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter_parameters(backbone).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def hidden_states(backbone, batch) -> list[torch.Tensor]:
    """The hidden states (B, N, C) that transformers returns when asked for them: of the input, and of each layer."""
    pixels = backbone.preprocess.normalise(batch)
    model, states = backbone.model, {"output_hidden_states": True}
    if backbone.name == "clip":
        found = model(pixel_values=pixels.flatten(0, 1), **states).hidden_states
        frames = backbone.preprocess.frames
        return [state.unflatten(0, (-1, frames)) for state in found]
    if backbone.name == "vjepa21":
        return list(model(pixel_values_videos=pixels, **states).hidden_states)
    if backbone.name == "vjepa2":
        # It tells them through the whole model alone, which has no predictor any more.
        found = []
        handles = [layer.register_forward_hook(lambda _, __, out: found.append(out[0])) for layer in backbone.stack]
        handles.append(backbone.stack[0].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])))
        model.encoder(pixel_values_videos=pixels)
        for handle in handles:
            handle.remove()
        return found
    return list(model(pixel_values=pixels, **states).hidden_states)


def pooled(backbone, state: torch.Tensor, pooling: str) -> torch.Tensor:
    if backbone.name == "clip":  # (B, T, 1 + P, C)
        return state[:, :, 0].mean(1) if pooling in ("cls", "default") else state[:, :, 1:].mean((1, 2))
    if backbone.name == "timesformer":
        return state[:, 0] if pooling in ("cls", "default") else state[:, 1:].mean(1)
    return state.mean(1)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", VIDEO)
def test_layers_are_transformers_hidden_states(name, lora, small, batch_for):
    backbone = small(name, num_hidden_layers=DEPTH)
    if lora:
        fill_adapters(apply_lora(backbone, LoraSettings(rank=2)))
    backbone.eval()
    batch = batch_for(backbone)
    with torch.no_grad():
        states = hidden_states(backbone, batch)
        assert len(states) == DEPTH + 1
        for pooling in ("mean", "default", *(("cls",) if backbone.class_tokens else ())):
            expected = torch.stack([pooled(backbone, state, pooling) for state in states])
            found = backbone.embed_layers(batch, pooling=pooling)
            assert found.shape == (DEPTH + 1, 3, 24)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(backbone.embed_layers(batch, [0, -1, 2, -5]), backbone.embed_layers(batch)[[0, 4, 2, 0]])
    distances = (found[1:] - found[:-1]).abs().amax((1, 2))
    assert (distances > 1e-3).all()


@pytest.mark.parametrize("name", VIDEO)
def test_last_layer_and_embedding_differ_by_the_final_norm(name, small, batch_for):
    backbone = small(name)
    batch = batch_for(backbone)
    with torch.no_grad():
        last, embedding = backbone.embed_layers(batch, [-1], "default")[0], backbone.embed(batch)
    if name == "videomae":  # has none
        assert torch.equal(last, embedding)
    elif name == "timesformer":  # of a single token
        assert torch.equal(backbone.model.layernorm(last), embedding)
    else:
        assert last.shape != embedding.shape or (last - embedding).abs().max() > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_neither_training_nor_checkpointing_changes_anything(name, small, batch_for):
    backbone = apply_lora(small(name), LoraSettings(rank=2, dropout=0.0))
    fill_adapters(backbone)
    batch = batch_for(backbone)
    expected = backbone.eval().embed_layers(batch)
    backbone.train().set_gradient_checkpointing(True)
    found = backbone.embed_layers(batch)
    assert torch.equal(found, expected) and not found.requires_grad


@pytest.mark.parametrize("name", ALL)
def test_one_pass_that_keeps_no_tokens_and_leaves_no_hooks(name, small, batch_for):
    backbone = small(name, num_hidden_layers=DEPTH)
    alive: list[weakref.ref] = []
    counts: list[int] = []

    def watch(_: nn.Module, __: object, output: object) -> None:
        counts.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(output[0] if isinstance(output, tuple) else output))

    handles = [layer.register_forward_hook(watch) for layer in backbone.stack]
    with torch.no_grad():
        backbone.embed_layers(batch_for(backbone))
    for handle in handles:
        handle.remove()
    # When a layer is done, of the states before it at most the one that it read is still there.
    assert len(counts) == DEPTH and max(counts) <= 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def test_hooks_go_when_the_pass_fails(small, batch_for, monkeypatch):
    backbone = small("clip")
    monkeypatch.setattr(backbone.stack[1], "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backbone.embed_layers(batch_for(backbone))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def test_layers_of_captions(small, batch_for, monkeypatch):
    backbone = small("text", num_hidden_layers=DEPTH)
    batch = batch_for(backbone)
    sentences = backbone._sentences[0]
    with torch.no_grad():
        found = backbone.embed_layers(batch)
        expected = []
        for captions in batch:
            of_captions = []
            for caption in captions:
                inputs = sentences.tokenizer(caption, return_tensors="pt")
                states = backbone.model(**inputs, output_hidden_states=True).hidden_states
                of_captions.append(nn.functional.normalize(torch.stack([state[0].mean(0) for state in states]), dim=-1))
            expected.append(torch.stack(of_captions).mean(0))
        torch.testing.assert_close(found, torch.stack(expected, 1), atol=1e-5, rtol=1e-4)
        # This sentence encoder pools its last layer by the mean.
        torch.testing.assert_close(found[-1], backbone.embed(batch), atol=1e-6, rtol=1e-5)
        monkeypatch.setattr("bgs.models.text._CHUNK", 2)
        torch.testing.assert_close(backbone.embed_layers(batch), found, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="pooling: 'cls'; layers of backbone 'text' are pooled by the mean"):
        backbone.embed_layers(batch, pooling="cls")


def test_embedder_hands_its_backbones_layers_on(small, batch_for):
    embedder = Embedder(apply_lora(small("timesformer")), HeadConfig(dim=10), pooling="attentive").eval()
    batch = batch_for(embedder.backbone)
    with torch.no_grad():
        found = embedder.embed_layers(batch, [1, -1], "cls")
        assert torch.equal(found, embedder.backbone.embed_layers(batch, [1, -1], "cls"))
    assert found.shape == (2, 3, 24)


def test_choice_of_layers():
    assert layer_numbers("all", 3) == [0, 1, 2, 3]
    assert layer_numbers([0, -1, 3, -4, 2], 3) == [0, 3, 3, 0, 2]
    for wrong in ([4], [-5], [1.0], [True], ["1"]):
        with pytest.raises(ValueError, match=re.escape(f"layers: {wrong[0]!r}; expected integers from -4 to 3")):
            layer_numbers(wrong, 3)
    for wrong in ([], "last", ""):
        with pytest.raises(ValueError, match="expected 'all' or at least one number"):
            layer_numbers(wrong, 3)


def test_poolings_that_layers_do_not_have(small, batch_for):
    backbone = small("vjepa2")
    with pytest.raises(ValueError, match="pooling: 'cls'; backbone 'vjepa2' has default, mean"):
        backbone.embed_layers(batch_for(backbone), pooling="cls")
    with pytest.raises(ValueError, match="'attentive' is learned"):
        backbone.embed_layers(batch_for(backbone), pooling="attentive")
