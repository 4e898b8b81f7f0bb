"""Pooling: the fixed choices, the attentive probe, and folders that keep them, bit for bit."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bgs.models import Embedder, HeadConfig, LoraSettings, apply_lora, check_adapters_receive_gradient, set_trainable
from bgs.models.lora import adapter_parameters
from bgs.models.pooling import AttentivePooling

VIDEO = ("vjepa2", "vjepa21", "timesformer", "videomae", "clip")
POOLINGS = {
    "vjepa2": ("default", "mean", "attentive"),
    "vjepa21": ("default", "mean", "attentive"),
    "timesformer": ("default", "mean", "cls", "attentive"),
    "videomae": ("default", "mean", "attentive"),
    "clip": ("default", "mean", "cls", "attentive"),
    "text": ("default",),
}
EVERY = [(name, pooling) for name in (*VIDEO, "text") for pooling in POOLINGS[name]]
# Tokens of a clip of 4 frames of 2x2 patches (clip: of 8 frames), and how many of them are class tokens.
TOKENS = {"vjepa2": (8, 0), "vjepa21": (8, 0), "timesformer": (17, 1), "videomae": (8, 0), "clip": (40, 8)}


def perturb(parameters, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("name", VIDEO)
def test_fixed_poolings_are_means_of_tokens(name, small, batch_for):
    backbone = small(name)
    batch = batch_for(backbone)
    number, of_class = TOKENS[name]
    with torch.no_grad():
        tokens = backbone.embed_tokens(batch)
        found = {pooling: backbone.embed(batch, pooling) for pooling in POOLINGS[name] if pooling != "attentive"}
    assert tokens.shape == (3, number, backbone.dim) and backbone.class_tokens == of_class
    assert torch.equal(found["mean"], tokens[:, of_class:].mean(1))
    assert torch.equal(found["default"], found["cls" if of_class else "mean"])
    if of_class:
        assert torch.equal(found["cls"], tokens[:, :of_class].mean(1))
        assert (found["cls"] - found["mean"]).abs().max() > 1e-3


def test_tokens_of_clip_are_projected_frame_by_frame(small, batch_for):
    backbone = small("clip")
    batch = batch_for(backbone)
    frames, model = backbone.preprocess.frames, backbone.model
    with torch.no_grad():
        tokens = backbone.embed_tokens(batch)
        for number in range(frames):
            pixels = backbone.preprocess.normalise(batch[:, number])
            output = model(pixel_values=pixels)
            every = model.visual_projection(model.vision_model.post_layernorm(output.last_hidden_state))
            torch.testing.assert_close(tokens[:, number], output.image_embeds)
            patches = tokens[:, frames + 4 * number : frames + 4 * (number + 1)]
            torch.testing.assert_close(patches, every[:, 1:])


def test_default_of_clip_is_the_mean_of_its_image_embeddings_bit_for_bit(small, batch_for):
    backbone = small("clip")
    batch = batch_for(backbone)
    with torch.no_grad():
        frames = backbone.preprocess.normalise(batch).flatten(0, 1)
        expected = backbone.model(pixel_values=frames).image_embeds.unflatten(0, batch.shape[:2]).mean(1)
        assert torch.equal(backbone.embed(batch), expected)


@pytest.mark.parametrize(
    ("name", "pooling", "message"),
    [
        ("vjepa2", "cls", "pooling: 'cls'; backbone 'vjepa2' has default, mean, attentive (it has no class token)"),
        ("videomae", "cls", "pooling: 'cls'; backbone 'videomae' has default, mean, attentive (it has no class token)"),
        ("clip", "max", "pooling: 'max'; backbone 'clip' has default, mean, cls, attentive"),
        ("text", "mean", "pooling: 'mean'; backbone 'text' has default"),
        ("text", "attentive", "pooling: 'attentive'; backbone 'text' has default"),
    ],
)
def test_poolings_that_a_backbone_does_not_have(name, pooling, message, small, batch_for):
    backbone = small(name)
    for attempt in (lambda: Embedder(backbone, pooling=pooling), lambda: backbone.embed(batch_for(backbone), pooling)):
        with pytest.raises(ValueError, match=re.escape(message)):
            attempt()


def test_attentive_pooling_is_the_embedders(small, batch_for):
    backbone = small("videomae")
    with pytest.raises(ValueError, match="'attentive' is learned, and part of an embedder"):
        backbone.embed(batch_for(backbone), "attentive")


@pytest.mark.parametrize(("dim", "heads"), [(24, 1), (128, 2), (768, 12), (1408, 22)])
def test_probe_is_softmax_attention_of_one_query(dim, heads):
    torch.manual_seed(0)
    probe = AttentivePooling(dim).double()
    assert probe.heads == heads
    perturb(probe.parameters())
    tokens = torch.randn(2, 7, dim, dtype=torch.float64)
    normed = nn.functional.layer_norm(tokens, (dim,), probe.norm.weight, probe.norm.bias)
    expected = []
    for part in range(heads):
        rows = slice(part * dim // heads, (part + 1) * dim // heads)
        keys = normed @ probe.key.weight[rows].T
        values = normed @ probe.value.weight[rows].T + probe.value.bias[rows]
        weights = torch.softmax(keys @ probe.query[0, rows] / (dim / heads) ** 0.5, -1)
        expected.append(torch.einsum("bn,bnc->bc", weights, values))
    torch.testing.assert_close(probe(tokens), torch.cat(expected, -1))
    assert torch.autograd.gradcheck(AttentivePooling(6).double(), torch.randn(2, 3, 6).double().requires_grad_())


def test_probe_starts_near_the_mean_of_normalised_tokens():
    torch.manual_seed(0)
    probe = AttentivePooling(64)
    tokens = torch.randn(4, 50, 64)
    mean = nn.functional.layer_norm(tokens, (64,)).mean(1)
    found = probe(tokens)
    assert nn.functional.cosine_similarity(found, mean).min() > 0.95
    # Every weight learns from the first step.
    gradients = torch.autograd.grad((found * torch.randn(4, 64)).sum(), list(probe.parameters()))
    assert all(gradient.any() for gradient in gradients)


def test_probe_is_small():
    """Two matrices of the encoder's width, and vectors."""
    assert sum(p.numel() for p in AttentivePooling(1024).parameters()) == 2 * 1024**2 + 4 * 1024


@pytest.mark.parametrize("name", VIDEO)
def test_probe_is_trained_with_the_head(name, small, batch_for):
    embedder = Embedder(apply_lora(small(name)), HeadConfig(dim=10), pooling="attentive")
    probe = {id(parameter) for parameter in embedder.pooler.parameters()}
    head = {id(parameter) for parameter in embedder.head.parameters()}
    adapters = {id(parameter) for parameter in adapter_parameters(embedder.backbone).values()}
    for mode, expected in (("head", probe | head), ("lora", probe | head | adapters)):
        set_trainable(embedder, mode)
        assert {id(parameter) for parameter in embedder.trainable_parameters()} == expected
    check_adapters_receive_gradient(embedder, batch_for(embedder.backbone, clips=2))
    out = embedder(batch_for(embedder.backbone))
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(parameter.grad.any() for parameter in embedder.head_parameters())


def test_without_a_head_the_probe_alone_can_be_trained(small):
    embedder = Embedder(small("vjepa2"), HeadConfig("none"), pooling="attentive")
    set_trainable(embedder, "head")
    assert embedder.trainable_parameters() == list(embedder.pooler.parameters())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("name", "pooling"), EVERY)
def test_round_trip_is_bit_for_bit(name, pooling, lora, small, batch_for, tmp_path):
    backbone = small(name)
    if lora:
        perturb(adapter_parameters(apply_lora(backbone, LoraSettings(rank=2))).values())
    embedder = Embedder(backbone, HeadConfig(dim=10), pooling=pooling).eval()
    perturb(embedder.head_parameters())
    batch = batch_for(backbone)
    expected = embedder(batch)
    embedder.save(tmp_path / "run")
    state = torch.get_rng_state()
    loaded = Embedder.load(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.pooling == pooling
    assert torch.equal(loaded(batch), expected)
    if pooling not in ("default", "cls" if name in ("timesformer", "clip") else "mean"):
        other = Embedder(loaded.backbone, HeadConfig(dim=10)).eval()
        other.head.load_state_dict(loaded.head.state_dict())
        assert (other(batch) - expected).abs().max() > 1e-4


def test_probe_is_kept_beside_the_head(small, tmp_path):
    embedder = Embedder(small("clip"), HeadConfig("linear", dim=3), pooling="attentive")
    embedder.save(tmp_path)
    weights = load_file(tmp_path / "head.safetensors")
    assert weights.keys() == {
        *("bias", "weight", "pooling.query", "pooling.norm.weight", "pooling.norm.bias"),
        *("pooling.key.weight", "pooling.value.weight", "pooling.value.bias"),
    }
    record = json.loads((tmp_path / "embedder.json").read_text())
    assert record["pooling"] == "attentive"
    (tmp_path / "embedder.json").write_text(json.dumps(record | {"pooling": "mean"}))
    with pytest.raises(ValueError, match=r"head\.safetensors: weights do not fit; unknown: pooling\.key\.weight"):
        Embedder.load(tmp_path)
    Embedder(small("clip"), HeadConfig("linear", dim=3)).save(tmp_path)
    record = json.loads((tmp_path / "embedder.json").read_text())
    (tmp_path / "embedder.json").write_text(json.dumps(record | {"pooling": "attentive"}))
    with pytest.raises(ValueError, match=r"head\.safetensors: weights do not fit; missing: pooling\.key\.weight"):
        Embedder.load(tmp_path)


def test_folder_from_before_there_was_a_choice_is_refused(small, tmp_path):
    Embedder(small("clip")).save(tmp_path)
    record = json.loads((tmp_path / "embedder.json").read_text())
    del record["pooling"]
    (tmp_path / "embedder.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"embedder\.json: no field pooling; was it saved by another version\?"):
        Embedder.load(tmp_path)
