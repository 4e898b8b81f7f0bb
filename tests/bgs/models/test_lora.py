"""LoRA: which layers it wraps, peft's file format in both directions, and adapters that cannot learn are found."""

import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, CLIPVisionModelWithProjection, TimesformerModel, VideoMAEModel, VJEPA2Model

from bgs.models import (
    Embedder,
    LoraSettings,
    adapter_config,
    apply_lora,
    check_adapters_receive_gradient,
    set_trainable,
)
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
    names = {re.split(r"\.lora_\w+\.", name)[0] for name in adapter_parameters(backbone)}
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


RANKS = {"last:1": 5, "0-1": 2}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_ranks_by_layer_keep_the_scale(name, rslora, small):
    settings = LoraSettings(rank=4, alpha=6, ranks=RANKS, rslora=rslora)
    backbone = apply_lora(small(name, num_hidden_layers=4), settings)
    layers = [module for module in backbone.encoder.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 4 * len(PER_LAYER[name])
    scale = 6 / 4 ** (0.5 if rslora else 1)
    ranks = {}
    for module, wrapped in ((key, m) for key, m in backbone.encoder.named_modules() if isinstance(m, LoraLayer)):
        assert wrapped.scaling["default"] == pytest.approx(scale)
        ranks.setdefault(int(re.search(r"(?:layers?|blocks)\.(\d+)\.", module)[1]), set()).add(wrapped.r["default"])
    assert ranks == {0: {2}, 1: {2}, 2: {4}, 3: {5}}


def test_ranks_within_chosen_layers_and_own_targets(small):
    settings = LoraSettings(rank=3, layers="1-2", ranks={"2-2": 7}, targets=["query"])
    backbone = apply_lora(small("vjepa2", num_hidden_layers=4), settings)
    shapes = {key: tuple(p.shape) for key, p in adapter_parameters(backbone).items() if ".lora_A." in key}
    stem = "base_model.model.encoder.layer.{}.attention.query.lora_A.default.weight"
    assert shapes == {stem.format(1): (3, 24), stem.format(2): (7, 24)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(ranks={"last:2": 0}), "lora.ranks: 'last:2': 0; expected an integer of at least 1"),
        (dict(ranks={"last:2": 2.5}), "lora.ranks: 'last:2': 2.5; expected an integer"),
        (dict(ranks={"3": 2}), "lora.ranks: '3'; expected 'all', 'last:K' or 'a-b'"),
        (dict(layers="last:0"), "lora.layers: 'last:0'; expected 'all', 'last:K' or 'a-b'"),
        (dict(layers="3-1"), "lora.layers: '3-1'; expected 'all', 'last:K' or 'a-b'"),
        (dict(alpha=0.0), "lora.alpha: 0.0; expected a number above 0"),
        (dict(alpha=float("nan")), "lora.alpha: nan; expected a number above 0"),
    ],
)
def test_settings_that_make_no_sense_anywhere(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LoraSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(ranks={"last:3": 2}), "lora.ranks: 'last:3' does not fit an encoder of 2 layers (0-1)"),
        (dict(ranks={"all": 4, "1-1": 2}), "lora.ranks: layer 1 is in both 'all' and '1-1'"),
        (dict(layers="last:1", ranks={"0-0": 2}), "'0-0' has layer 0, which lora.layers 'last:1' has not"),
        (
            dict(targets=r"encoder\.layer\.1\..*query", ranks={"0-0": 2}),
            "lora.ranks: no module that lora.targets names",
        ),
    ],
)
def test_settings_that_do_not_fit_the_encoder(settings, message, small):
    backbone = small("videomae")
    for attempt in (adapter_config, apply_lora):
        with pytest.raises(ValueError, match=re.escape(message)):
            attempt(backbone, LoraSettings(**settings))
    assert not isinstance(backbone.encoder, PeftModel)


def test_the_configuration_can_be_had_without_adapters(small):
    backbone = small("clip")
    before = backbone.digest()
    config = adapter_config(backbone, LoraSettings(rank=3, dora=True, rslora=True, ranks={"last:1": 6}))
    assert (config.r, config.use_dora, config.use_rslora) == (3, True, True)
    assert list(config.rank_pattern.values()) == [6]
    assert not adapter_parameters(backbone) and backbone.digest() == before


@pytest.mark.parametrize("name", ALL)
def test_dora_starts_as_no_change_and_every_part_of_it_learns(name, small, batch_for):
    backbone = small(name)
    batch, digest = batch_for(backbone), backbone.digest()
    before = backbone.embed(batch)
    apply_lora(backbone, LoraSettings(rank=2, dora=True)).eval()
    torch.testing.assert_close(backbone.embed(batch), before, atol=1e-5, rtol=1e-5)
    parts = {re.search(r"\.(lora_\w+)\.", key)[1] for key in adapter_parameters(backbone)}
    assert parts == {"lora_A", "lora_B", "lora_magnitude_vector"}
    assert len(adapter_parameters(backbone)) == 3 * len(wrapped_modules(backbone))
    assert backbone.digest() == digest
    assert len(backbone.encoder_parameters()) == len(small(name).encoder_parameters())
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    check_adapters_receive_gradient(backbone, batch)
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_dora_is_the_weight_at_its_learned_norm(small, batch_for):
    """W' = m (W + s B A) / |W + s B A|, row by row (Liu et al., 2024, eq. 5)."""
    backbone = apply_lora(small("videomae"), LoraSettings(rank=2, alpha=3, dora=True)).eval()
    fill_adapters(backbone)
    query = backbone.model.encoder.layer[0].attention.attention.query
    weight = query.weight + 1.5 * query.lora_B["default"].weight @ query.lora_A["default"].weight
    magnitude = query.lora_magnitude_vector["default"].weight
    expected = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
    x = torch.randn(4, 24)
    torch.testing.assert_close(query(x), nn.functional.linear(x, expected, query.bias), atol=1e-5, rtol=1e-4)


OPTIONS = {
    "ranks": dict(rank=2, ranks={"last:1": 3}),
    "dora": dict(rank=2, dora=True),
    "rslora": dict(rank=2, rslora=True),
    "all of them": dict(rank=2, ranks={"0-0": 1}, dora=True, rslora=True, layers="all"),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ALL)
def test_options_are_saved_and_loaded_bit_for_bit(name, options, small, batch_for, tmp_path):
    backbone = apply_lora(small(name), LoraSettings(**OPTIONS[options]))
    fill_adapters(backbone)
    embedder = Embedder(backbone).eval()
    embedder.save(tmp_path / "run")
    loaded = Embedder.load(tmp_path / "run")
    batch = batch_for(backbone)
    assert torch.equal(loaded(batch), embedder(batch))
    ours, theirs = adapter_parameters(backbone), adapter_parameters(loaded.backbone)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    scales = [
        [module.scaling for module in one.encoder.modules() if isinstance(module, LoraLayer)]
        for one in (backbone, loaded.backbone)
    ]
    assert scales[0] == scales[1]


def test_dora_file_without_a_magnitude_is_refused(small, tmp_path):
    apply_lora(small("clip"), LoraSettings(dora=True)).encoder.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    gone = next(key for key in sorted(weights) if "magnitude" in key)
    del weights[gone]
    save_file(weights, file)
    with pytest.raises(ValueError, match=rf"missing: {re.escape(gone)}"):
        load_adapter(small("clip"), tmp_path)


def test_frozen_magnitude_is_found(small, batch_for):
    backbone = apply_lora(small("clip"), LoraSettings(dora=True))
    name = next(key for key in adapter_parameters(backbone) if "magnitude" in key)
    adapter_parameters(backbone)[name].requires_grad_(False)
    with pytest.raises(ValueError, match=f"{re.escape(name)} is frozen$"):
        check_adapters_receive_gradient(backbone, batch_for(backbone))


@pytest.mark.parametrize("layers", ["last:1", "2-3", "1-2"])
@pytest.mark.parametrize("name", ALL)
def test_layers_below_the_adapters_cost_nothing(name, layers, small, batch_for):
    """They keep nothing for the backward pass, and are not run a second time in it."""
    first = chosen_layers(layers, 4).start
    backbone = apply_lora(small(name, num_hidden_layers=4), LoraSettings(rank=2, layers=layers, dropout=0.0))
    backbone.set_gradient_checkpointing(True)
    inside, needs_graph = -1, []
    runs, kept = [0] * 4, {}

    def enter(number, inputs):
        nonlocal inside
        inside = number
        needs_graph.append(inputs[0].requires_grad)

    def leave(number):
        nonlocal inside
        inside = number + 0.5

    def run(number):
        runs[number] += 1

    def pack(tensor):
        kept[inside] = kept.get(inside, 0) + tensor.numel()
        return tensor

    for number, layer in enumerate(backbone.stack):
        layer.register_forward_pre_hook(lambda _, inputs, number=number: enter(number, inputs))
        layer.register_forward_hook(lambda *_, number=number: leave(number))
        # A layer's own hooks may stay outside the checkpoint; those of its parts are inside.
        norm = next(part for part in layer.modules() if isinstance(part, nn.LayerNorm))
        norm.register_forward_pre_hook(lambda *_, number=number: run(number))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = backbone.train().embed(batch_for(backbone)).square().sum()
    assert needs_graph == [number > first for number in range(4)]
    assert min(kept) > first - 1
    assert runs == [1] * 4
    torch.autograd.grad(loss, list(adapter_parameters(backbone).values()))
    assert runs == [1 if number < first else 2 for number in range(4)]


def test_checkpointing_follows_what_is_trained(small):
    backbone = small("videomae", num_hidden_layers=3)
    backbone.set_gradient_checkpointing(True)

    def on() -> list[bool]:
        return [layer.gradient_checkpointing for layer in backbone.stack]

    assert on() == [False] * 3
    embedder = Embedder(backbone)
    set_trainable(embedder, "full")
    assert on() == [True] * 3
    set_trainable(embedder, "head")
    assert on() == [False] * 3
    apply_lora(backbone, LoraSettings(layers="last:2"))
    assert on() == [False, True, True]
    backbone.set_gradient_checkpointing(False)
    set_trainable(embedder, "lora")
    assert on() == [False] * 3
