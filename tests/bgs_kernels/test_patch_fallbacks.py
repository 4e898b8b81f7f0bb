"""A call that the ops cannot serve is served by the plain forward, with its result, after a warning that says why."""

import contextlib
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from bgs_kernels import FallbackWarning, accelerate

sys.path.insert(0, str(Path(__file__).parent))
from patch_models import NAMES, adapt, base, clips, embed, fill, outcome, plain, twin

sys.path.pop(0)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def run_twice(model, name, pixels, context=contextlib.nullcontext):
    """The outcome, and the reasons given over two calls."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with context(model):
            outcome(model, name, pixels)
            found = outcome(model, name, pixels)
    said = [str(each.message) for each in caught if issubclass(each.category, FallbackWarning)]
    return found, said


def lora_layers(model):
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def merge(model):
    model.merge_adapter()


def second_adapter(model):
    torch.manual_seed(5)
    model.add_adapter("second", LoraConfig(r=2, target_modules=model.peft_config["default"].target_modules))
    fill(model)
    model.base_model.set_adapter(["default", "second"])


def turned_dropout(model):
    for layer in lora_layers(model):
        layer.lora_dropout["default"] = nn.Dropout1d(0.5)


def all_dropped(model):
    for layer in lora_layers(model):
        layer.lora_dropout["default"] = nn.Dropout(1.0)


def negative(model):
    for layer in lora_layers(model):
        layer.scale_layer(-1.0)


def hooks(model):
    for layer in lora_layers(model):
        layer.lora_B["default"].register_forward_hook(lambda module, inputs, output: 3 * output)


def hooked_base(model):
    for layer in lora_layers(model):
        layer.base_layer.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def trained(model):
    model.requires_grad_(True)


def double_adapters(model):
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.double()


class Wider(nn.Linear):
    """A base layer of a class of its own."""

    def forward(self, x):
        return super().forward(x) + 1


def other_base(model):
    for layer in lora_layers(model):
        layer.base_layer.__class__ = Wider


CASES = {
    "merged": (merge, "the adapter is merged"),
    "several adapters": (second_adapter, "several adapters are active"),
    "dropout of another kind": (turned_dropout, r"the adapter's dropout is Dropout1d\(p=0.5"),
    "dropout of everything": (all_dropped, r"the adapter's dropout is Dropout\(p=1.0"),
    "scaling": (negative, "the adapter's scaling is not a number of at least 0"),
    "hooks": (hooks, "the adapter's layers are not plain, or have hooks"),
    "hooks of the base layer": (hooked_base, "a projection has hooks"),
    "trained weights": (trained, "the weights of the model itself are trained"),
    "dtype": (double_adapters, r"the adapter is float64, not float32 or as the input \(float32\)"),
    "base layer": (other_base, r"a projection is .*test_patch_fallbacks\.Wider, not torch\.nn\.Linear"),
}


def assert_served_plainly(model, accelerated, name, pixels, reason, context=contextlib.nullcontext):
    """The accelerated model gives what the plain one gives, and says the one reason once."""
    found, said = run_twice(accelerated, name, pixels, context)
    (warning,) = said
    assert re.search(f"runs as without accelerate: {reason}", warning) and warning.endswith("(said once)")
    with context(model):
        expected = outcome(model, name, pixels)
    assert found.keys() == expected.keys()
    for each, tensor in expected.items():
        torch.testing.assert_close(found[each], tensor, rtol=2e-5, atol=2e-5 * float(tensor.abs().max()), msg=each)


def both(model):
    """A model and its accelerated twin."""
    accelerated = twin(model)
    accelerate(accelerated)
    return model, accelerated


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_what_happens_to_adapters_after(name, case):
    change, reason = CASES[case]
    pair = both(plain(name).train())
    for each in pair:
        change(each)
    assert_served_plainly(*pair, name, clips(1), reason)


@pytest.mark.parametrize("name", NAMES)
def test_adapters_that_are_disabled(name):
    pair = both(plain(name, bias="all"))  # the biases of the model are trained too, so that there is a gradient
    assert_served_plainly(*pair, name, clips(1), "adapters are disabled", lambda model: model.disable_adapter())


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        (dict(use_dora=True), r"the adapter is a variant of LoRA \(DoRA\)"),
        (dict(lora_bias=True), r"the adapter has a bias \(lora_bias\)"),
    ],
)
def test_kinds_of_adapters(lora, reason):
    assert_served_plainly(*both(plain("videomae", **lora)), "videomae", clips(1), reason)


@pytest.mark.parametrize("name", ["vjepa2", "clip"])
def test_a_batch_whose_items_name_their_adapters(name):
    model = plain(name).eval()
    second_adapter(model)
    model.set_adapter("default")
    model, accelerated = both(model)
    pixels, names = clips(3)[:, :1] if name == "clip" else clips(3), ["second", "__base__", "default"]

    def run(each):
        with torch.no_grad(), each.base_model._enable_peft_forward_hooks(adapter_names=names):
            return embed(each, name, pixels)

    with pytest.warns(FallbackWarning) as caught:
        found = run(accelerated)
    said = [str(each.message) for each in caught]
    assert any("a call with more than its input (adapter_names)" in each for each in said)
    assert len(said) == len({each.split(": ", 1)[1] for each in said}) <= 2
    assert torch.equal(found, run(model))
    with torch.no_grad():
        assert torch.equal(embed(accelerated, name, pixels), embed(model, name, pixels))
        assert not torch.equal(embed(model, name, pixels), found)


@pytest.mark.parametrize("name", ["vjepa2", "videomae", "clip"])
def test_eager_attention_returns_its_weights(name):
    pair = both(plain(name))
    for each in pair:
        each.get_base_model().set_attn_implementation("eager")
    assert_served_plainly(*pair, name, clips(1), "attn_implementation is 'eager'")
    with torch.no_grad():
        expected, found = (weights(each, name) for each in pair)
    assert len(found) == 2
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact)


def weights(model, name):
    """Attention weights as the model returns them."""
    model = model.get_base_model()
    if name == "vjepa2":
        return model(pixel_values_videos=clips(1), skip_predictor=True, output_attentions=True).attentions
    pixels = clips(1)[0] if name == "clip" else clips(1)
    return (model.vision_model if name == "clip" else model)(pixel_values=pixels, output_attentions=True).attentions


def test_attention_weights_of_timesformer():
    model, accelerated = both(plain("timesformer"))
    with torch.no_grad(), pytest.warns(FallbackWarning, match="attention weights are asked for") as caught:
        expected, found = (weights(each, "timesformer") for each in (model, accelerated))
    assert len(caught) == 1
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_of_attention_weights(name):
    rate = "attention_dropout" if name == "clip" else "attention_probs_dropout_prob"
    pair = both(adapt(base(name, **{rate: 0.5}), name))
    for each in pair:
        each.train()
    assert_served_plainly(*pair, name, clips(1), "attention weights are dropped out")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        expected, found = (outcome(each.eval(), name, clips(1))["embeddings"] for each in pair)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_position_masks_and_frames_in_part_of_vjepa2():
    model, accelerated = (each.get_base_model().encoder.layer[0].attention for each in both(plain("vjepa2")))
    tokens, places = torch.randn(2, 5, 32), torch.tensor([[0, 3, 4, 9, 17], [1, 2, 3, 10, 11]])
    with torch.no_grad():
        for more, reason in ({"position_mask": places}, "a position mask"), ({}, "5 tokens are no whole number of"):
            with pytest.warns(FallbackWarning, match=reason) as caught:
                found, twice = accelerated(tokens, **more), accelerated(tokens, **more)
            assert len(caught) == 1
            assert torch.equal(found[0], model(tokens, **more)[0]) and torch.equal(found[0], twice[0])


def test_masked_attention_of_clip():
    model, accelerated = (
        each.get_base_model().vision_model.encoder.layers[0].self_attn for each in both(plain("clip"))
    )
    tokens, mask = torch.randn(2, 5, 32), torch.rand(2, 1, 5, 5) > 0.2
    mask |= torch.eye(5, dtype=torch.bool)
    with torch.no_grad(), pytest.warns(FallbackWarning, match="attention is masked") as caught:
        for more in {"attention_mask": mask}, {"is_causal": True}:
            assert torch.equal(accelerated(tokens, **more)[0], model(tokens, **more)[0])
    assert len(caught) == 1


def test_hooks_on_projections_are_called():
    model, accelerated = both(plain("vjepa2"))
    for each in (model, accelerated):
        for layer in each.get_base_model().encoder.layer:
            layer.attention.key.register_forward_hook(lambda module, inputs, output: -output)
    assert_served_plainly(model, accelerated, "vjepa2", clips(1), "a projection has hooks")


def test_adapters_that_differ_in_dropout_are_projected_one_by_one():
    model, accelerated = both(plain("videomae", lora_dropout=0.2).train())
    for each in (model, accelerated):
        for layer in each.get_base_model().encoder.layer:
            layer.attention.attention.key.lora_dropout["default"].p = 0.6
    reason = "queries, keys and values differ in their adapters' dropout"
    assert_served_plainly(model, accelerated, "videomae", clips(1), reason)


def test_a_transposed_base_layer_is_left_alone():
    class Projections(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.transposed = nn.Linear(4, 4), Conv1D(4, 4)

        def forward(self, x):
            return self.linear(x) + self.transposed(x)

    model = get_peft_model(Projections(), LoraConfig(target_modules=["linear", "transposed"], fan_in_fan_out=True))
    report = accelerate(model)
    assert report.fused == {"lora_linear": ("base_model.model.linear",)}
    assert report.left == {"peft wraps a Conv1D, not a torch.nn.Linear": ("base_model.model.transposed",)}


def test_layers_of_peft_that_are_not_over_linear_layers_are_named():
    model = get_peft_model(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 4)), LoraConfig(target_modules=["0", "1"]))
    report = accelerate(model)
    assert report.left == {"a layer of peft that is not lora.Linear (Conv2d)": ("base_model.model.0",)}


def test_a_reason_is_said_once_for_a_model_and_again_for_another():
    first, second = plain("videomae"), plain("videomae")
    for model in (first, second):
        accelerate(model)
        model.merge_adapter()
        with torch.no_grad(), pytest.warns(FallbackWarning) as caught:
            embed(model, "videomae", clips(1))
            model.unmerge_adapter()
            embed(model, "videomae", clips(1))
            model.merge_adapter()
            embed(model, "videomae", clips(1))
        assert len(caught) == 1
