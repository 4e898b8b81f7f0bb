"""Adapters live as they do without ``accelerate``: added, switched, merged, unloaded, and saved as files that the plain
model loads, and the other way round.
"""

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from bgs_kernels import accelerate, restore
from bgs_kernels.patch import Fused

sys.path.insert(0, str(Path(__file__).parent))
from patch_models import NAMES, base, clips, embed, fill, outcome, plain, twin

sys.path.pop(0)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("error::bgs_kernels.FallbackWarning"),
]


def both(model):
    """A model and its accelerated twin."""
    accelerated = twin(model)
    accelerate(accelerated)
    return model, accelerated


def assert_alike(pair, name):
    """The two compute the same values and gradients."""
    expected, found = (outcome(each, name, clips(1)) for each in pair)
    assert found.keys() == expected.keys()
    for each, tensor in expected.items():
        torch.testing.assert_close(found[each], tensor, rtol=2e-5, atol=2e-5 * float(tensor.abs().max()), msg=each)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_the_same_byte_for_byte_and_load_into_either(name, tmp_path):
    model, accelerated = both(plain(name))
    model.save_pretrained(tmp_path / "plain")
    accelerated.save_pretrained(tmp_path / "fused")
    files = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert files == {path.name for path in (tmp_path / "fused").iterdir()}
    for file in files:
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "fused" / file).read_bytes()
    expected = outcome(model, name, clips(1))["embeddings"]
    loaded = PeftModel.from_pretrained(base(name), str(tmp_path / "fused"))
    assert not any(isinstance(module, Fused) for module in loaded.modules())
    assert torch.equal(outcome(loaded, name, clips(1))["embeddings"], expected)
    other = get_peft_model(base(name), model.peft_config["default"])
    accelerate(other)
    other.load_adapter(str(tmp_path / "plain"), "default")
    torch.testing.assert_close(outcome(other, name, clips(1))["embeddings"], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_accelerated_before_adapters_come_and_again_after(name):
    model = base(name)
    first = accelerate(model)
    config = plain(name).peft_config["default"]
    torch.manual_seed(2)
    adapted = get_peft_model(model, config)
    fill(adapted)
    restored = twin(adapted)
    restore(restored)
    said = pytest.warns(match="a projection is peft.tuners.lora.layer.Linear, not torch.nn.Linear")
    with said if name != "timesformer" else contextlib.nullcontext():  # its queries, keys and values are one layer
        assert_alike((restored, adapted), name)
    second = accelerate(adapted)
    assert set(second.fused) == set(first.fused) | {"lora_linear"}
    assert_alike((restored, adapted), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_adapter_is_added_and_switched_to_and_removed(name):
    pair = both(plain(name))
    targets = pair[0].peft_config["default"].target_modules
    for each in pair:
        torch.manual_seed(7)
        each.add_adapter("second", LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=targets))
        fill(each)
    assert_alike(pair, name)
    before = outcome(pair[0], name, clips(1))["embeddings"]
    for each in pair:
        each.set_adapter("second")
    assert_alike(pair, name)
    assert not torch.equal(outcome(pair[1], name, clips(1))["embeddings"], before)
    for each in pair:
        each.delete_adapter("default")
    assert_alike(pair, name)


def test_an_adapter_that_a_layer_has_not_got_leaves_it_to_its_weights():
    pair = both(plain("vjepa2"))
    for each in pair:
        torch.manual_seed(7)
        each.add_adapter("third", LoraConfig(r=3, target_modules=r"encoder\.layer\.\d+\.attention\.value"))
        fill(each)
        each.set_adapter("third")
    assert_alike(pair, "vjepa2")


@pytest.mark.parametrize("name", NAMES)
def test_merging_and_unloading_leave_a_model_that_runs(name):
    model, accelerated = both(plain(name))
    expected = outcome(model, name, clips(1))["embeddings"]
    for how in ("merge_and_unload", "unload"):
        theirs, ours = getattr(twin(model), how)(), getattr(twin(accelerated), how)()
        for each, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[each], tensor)
        with torch.no_grad():
            found = embed(ours, name, clips(1))
            torch.testing.assert_close(found, embed(theirs, name, clips(1)), rtol=2e-5, atol=2e-5)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4) == (how == "merge_and_unload")
        restore(ours)
        assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]


def test_merged_and_taken_out_again_it_runs_fused_again():
    model, accelerated = both(plain("clip"))
    with pytest.warns(match="the adapter is merged"):
        for each in (model, accelerated):
            each.merge_adapter()
            outcome(each, "clip", clips(1))
            each.unmerge_adapter()
    assert_alike((model, accelerated), "clip")


def test_biases_that_are_trained_beside_adapters_get_their_gradient():
    pair = both(plain("vjepa2", bias="lora_only"))
    assert any(name.endswith("key.base_layer.bias") for name in outcome(pair[1], "vjepa2", clips(1)))
    assert_alike(pair, "vjepa2")


def test_an_optimiser_step_moves_both_alike():
    pair = both(plain("videomae", lora_dropout=0.1).train())
    for each in pair:
        optimiser = torch.optim.AdamW([p for p in each.parameters() if p.requires_grad], lr=1e-2)
        torch.manual_seed(3)
        for _ in range(3):
            optimiser.zero_grad()
            embed(each, "videomae", clips()).square().sum().backward()
            optimiser.step()
    for name, parameter in pair[0].named_parameters():
        torch.testing.assert_close(pair[1].get_parameter(name), parameter, rtol=1e-4, atol=1e-5)
    before, after = plain("videomae").state_dict(), pair[1].state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {name for name, parameter in pair[1].named_parameters() if parameter.requires_grad}
