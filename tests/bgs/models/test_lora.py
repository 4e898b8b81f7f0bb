"""LoRA: which layers it wraps, peft's file format in both directions, and adapters that cannot learn are found."""

import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, CLIPVisionModelWithProjection, TimesformerModel, VideoMAEModel, VJEPA2Model

from bgs.models import Embedder, LoraSettings, apply_lora, check_adapters_receive_gradient
from bgs.models.lora import adapter_parameters, chosen_layers, load_adapter
from bgs.models.vjepa21 import VJEPA21Model

ALL = ("vjepa2", "vjepa21", "timesformer", "videomae", "clip", "text")
PLAIN = {
    "vjepa2": VJEPA2Model,
    "vjepa21": VJEPA21Model,
    "timesformer": TimesformerModel,
    "videomae": VideoMAEModel,
    "clip": CLIPVisionModelWithProjection,
    "text": AutoModel,
}
# Linear layers that LoRA wraps in one transformer layer, as the design lists them.
PER_LAYER = {
    "vjepa2": ["attention.key", "attention.proj", "attention.query", "attention.value", "mlp.fc1", "mlp.fc2"],
    "vjepa21": ["attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2"],
    "timesformer": [
        "attention.attention.qkv",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
        "temporal_attention.attention.qkv",
        "temporal_attention.output.dense",
        "temporal_dense",
    ],
    "videomae": [
        "attention.attention.key",
        "attention.attention.query",
        "attention.attention.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
    "clip": [
        "mlp.fc1",
        "mlp.fc2",
        "self_attn.k_proj",
        "self_attn.out_proj",
        "self_attn.q_proj",
        "self_attn.v_proj",
    ],
    "text": [
        "attention.output.dense",
        "attention.self.key",
        "attention.self.query",
        "attention.self.value",
        "intermediate.dense",
        "output.dense",
    ],
}


def wrapped_modules(backbone) -> list[str]:
    names = {re.split(r"\.lora_[AB]\.", name)[0] for name in adapter_parameters(backbone)}
    return sorted(name.removeprefix("base_model.model.") for name in names)


def fill_adapters(backbone, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(backbone).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.mark.parametrize("name", ALL)
def test_wraps_the_listed_layers_and_nothing_else(name, small):
    backbone = apply_lora(small(name))
    layers = {"clip": "vision_model.encoder.layers", "vjepa21": "blocks"}.get(name, "encoder.layer")
    assert wrapped_modules(backbone) == sorted(f"{layers}.{n}.{part}" for n in (0, 1) for part in PER_LAYER[name])
    config = backbone.encoder.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.1)
    trainable = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trainable == {f"encoder.{key}" for key in adapter_parameters(backbone)}


@pytest.mark.parametrize("name", ALL)
def test_starts_as_no_change(name, small, batch_for):
    backbone = small(name)
    batch = batch_for(backbone)
    before = backbone.embed(batch)
    assert torch.equal(apply_lora(backbone).eval().embed(batch), before)
    fill_adapters(backbone)
    assert not torch.allclose(backbone.embed(batch), before, atol=1e-3)


@pytest.mark.parametrize(
    ("layers", "expected"), [("all", [0, 1, 2, 3]), ("last:1", [3]), ("last:4", [0, 1, 2, 3]), ("1-2", [1, 2])]
)
@pytest.mark.parametrize("name", ["timesformer", "clip", "vjepa21"])
def test_layer_choice(name, layers, expected, small):
    backbone = apply_lora(small(name, num_hidden_layers=4), LoraSettings(rank=1, layers=layers))
    found = {int(re.search(r"(?:layers?|blocks)\.(\d+)\.", module)[1]) for module in wrapped_modules(backbone)}
    assert sorted(found) == expected


@pytest.mark.parametrize("layers", ["last", "last:0", "last:5", "2-4", "3-1", "-1", "1,2"])
def test_layer_choice_that_makes_no_sense(layers):
    with pytest.raises(ValueError, match=f"lora.layers: '{layers}'"):
        chosen_layers(layers, 4)


def test_own_targets(small):
    names = apply_lora(small("vjepa2"), LoraSettings(targets=["query", "value"], layers="last:1"))
    assert wrapped_modules(names) == ["encoder.layer.1.attention.query", "encoder.layer.1.attention.value"]
    pattern = apply_lora(small("timesformer"), LoraSettings(targets=r"encoder\.layer\.\d+\.temporal_dense"))
    assert wrapped_modules(pattern) == ["encoder.layer.0.temporal_dense", "encoder.layer.1.temporal_dense"]


def test_targets_that_cannot_be_wrapped(small):
    with pytest.raises(ValueError, match="no module of the vjepa2 encoder matches"):
        apply_lora(small("vjepa2"), LoraSettings(targets=["qkv"]))
    with pytest.raises(ValueError, match=r"not Linear: encoder\.embeddings\.patch_embeddings\.proj \(Conv3d\)"):
        apply_lora(small("vjepa2"), LoraSettings(targets=["proj"]))
    with pytest.raises(ValueError, match="already has LoRA"):
        apply_lora(apply_lora(small("vjepa2")))


@pytest.mark.parametrize(("field", "value"), [("rank", 0), ("dropout", 1.0), ("dropout", -0.1)])
def test_settings_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"lora.{field}: {value}"):
        LoraSettings(**{field: value})


@pytest.mark.parametrize("name", ALL)
def test_saved_adapter_loads_in_plain_peft(name, small, batch_for, tmp_path):
    backbone = small(name)
    backbone.save_base(tmp_path / "base")
    fill_adapters(apply_lora(backbone, LoraSettings(rank=3)))
    backbone.eval()
    Embedder(backbone).save(tmp_path / "run")

    plain = PLAIN[name].from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(plain, str(tmp_path / "run/adapter")).eval()
    ours = {key.removeprefix("base_model.model."): p for key, p in adapter_parameters(backbone).items()}
    loaded = {key.removeprefix("base_model.model."): p for key, p in theirs.named_parameters() if ".lora_" in key}
    assert loaded.keys() == ours.keys()
    assert all(torch.equal(loaded[key], ours[key]) for key in ours)

    batch = batch_for(backbone)
    expected = backbone.embed(batch)
    backbone.encoder = theirs
    torch.testing.assert_close(backbone.embed(batch), expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_plain_peft_adapter_loads_here(name, small, batch_for, tmp_path):
    backbone = small(name)
    backbone.save_base(tmp_path / "base")
    plain = PLAIN[name].from_pretrained(tmp_path / "base")
    theirs = get_peft_model(plain, LoraConfig(r=2, target_modules=backbone.lora_targets)).eval()
    for parameter in (p for key, p in theirs.named_parameters() if ".lora_" in key):
        nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(str(tmp_path / "adapter"))

    state = torch.get_rng_state()
    load_adapter(backbone, tmp_path / "adapter")
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    batch = batch_for(backbone)
    found = backbone.embed(batch)
    backbone.encoder = theirs
    torch.testing.assert_close(found, backbone.embed(batch), atol=0, rtol=0)


def test_adapter_file_that_does_not_fit(small, tmp_path):
    apply_lora(small("clip")).encoder.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    gone = sorted(weights)[0]
    changed = {key: value for key, value in weights.items() if key != gone} | {"base_model.model.extra": torch.ones(1)}
    save_file(changed, file)
    with pytest.raises(ValueError, match=rf"missing: {re.escape(gone)}; unknown: base_model\.model\.extra"):
        load_adapter(small("clip"), tmp_path)
    save_file(weights | {gone: torch.zeros(3, 5)}, file)
    with pytest.raises(ValueError, match=rf"of another shape: {re.escape(gone)} \(3, 5\) for"):
        load_adapter(small("clip"), tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors: no such file"):
        load_adapter(small("clip"), tmp_path)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_fresh_adapters_pass_the_check_and_are_left_as_they_were(name, checkpointing, small, batch_for):
    backbone = apply_lora(small(name))
    backbone.set_gradient_checkpointing(checkpointing)
    embedder = Embedder(backbone).eval()
    embedder.head[0].train()
    before = {key: value.clone() for key, value in embedder.state_dict().items()}
    modes = [module.training for module in embedder.modules()]
    mark = next(p for p in embedder.parameters() if p.requires_grad)
    mark.grad = torch.full_like(mark, 7.0)
    state = torch.get_rng_state()

    check_adapters_receive_gradient(embedder, batch_for(backbone, clips=2))

    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in embedder.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in embedder.state_dict().items())
    assert {key for key, p in embedder.named_parameters() if p.grad is not None} == {
        key for key, p in embedder.named_parameters() if p is mark
    }
    assert torch.equal(mark.grad, torch.full_like(mark, 7.0))


def test_bypassed_adapter_is_found(small, batch_for):
    backbone = apply_lora(small("videomae"))
    query = backbone.model.encoder.layer[1].attention.attention.query
    # What older transformers did: the wrapped layer's weight is used, its forward is not.
    query.forward = lambda x: nn.functional.linear(x, query.weight, query.bias)
    with pytest.raises(ValueError) as caught:
        check_adapters_receive_gradient(backbone, batch_for(backbone))
    named = set(re.findall(r"(\S+) gets no gradient", str(caught.value)))
    stem = "base_model.model.encoder.layer.1.attention.attention.query"
    assert named == {f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight"}


def test_all_adapters_bypassed_are_found(small, batch_for):
    backbone = apply_lora(small("clip"))
    with backbone.encoder.disable_adapter(), pytest.raises(ValueError) as caught:
        check_adapters_receive_gradient(backbone, batch_for(backbone))
    assert str(caught.value).count("is frozen") + str(caught.value).count("gets no gradient") == len(
        adapter_parameters(backbone)
    )


def test_inert_adapter_is_found(small, batch_for):
    backbone = apply_lora(small("clip"))
    gated = backbone.model.vision_model.encoder.layers[0].mlp.fc2
    forward = gated.forward
    gated.forward = lambda x: forward(x) * 0.0
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp\.fc2\.lora_A\.default\.weight gets a gradient of exactly zero"
    ):
        check_adapters_receive_gradient(backbone, batch_for(backbone))


def test_frozen_adapter_is_found(small, batch_for):
    backbone = apply_lora(small("clip"))
    name, parameter = next(iter(adapter_parameters(backbone).items()))
    parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=f"{re.escape(name)} is frozen$"):
        check_adapters_receive_gradient(backbone, batch_for(backbone))


def test_check_needs_adapters(small, batch_for):
    backbone = small("clip")
    with pytest.raises(ValueError, match="has no LoRA adapters to check"):
        check_adapters_receive_gradient(backbone, batch_for(backbone))


def test_frozen_layers_below_the_adapters_get_no_backward_pass(small, batch_for):
    backbone = apply_lora(small("text"), LoraSettings(layers="last:1", dropout=0.0))
    backbone.set_gradient_checkpointing(True)
    seen: list[bool] = []
    backbone.model.encoder.layer[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].requires_grad))
    backbone.train().embed(batch_for(backbone))
    assert seen == [False]
