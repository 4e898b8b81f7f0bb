"""``accelerate``: the model computes what it computed before, ``restore`` gives it back as it was, and the report says
what was done.
"""

import contextlib
import copy
import importlib
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel
from transformers.models.timesformer import modeling_timesformer
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2RopeAttention

import bgs_kernels.patch.families
from bgs_kernels import FallbackWarning, accelerate, attention, register_family, restore, rope_table
from bgs_kernels.attention import attend
from bgs_kernels.patch import Fused, FusedSelfAttention, project

sys.path.insert(0, str(Path(__file__).parent))
from patch_models import NAMES, SIDE, adapt, base, clips, embed, outcome, plain, twin

sys.path.pop(0)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PRECISIONS = ("float32", "bfloat16", "bfloat16 with float32 adapters", "autocast")
IDENTICAL = ("vjepa2", "videomae", "clip")
"""Models whose plain attention is PyTorch's own as well, so that not a bit differs on the CPU; TimeSformer's is not."""


@pytest.fixture(autouse=True)
def no_fallback():
    """No test here is about a call that is not served; those that are say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        yield


def assert_same(name, found, expected):
    """Bit for bit, but for TimeSformer."""
    assert found.keys() == expected.keys()
    for each, tensor in expected.items():
        if name in IDENTICAL:
            assert torch.equal(found[each], tensor), each
        else:
            torch.testing.assert_close(found[each], tensor, rtol=2e-5, atol=2e-5 * tensor.abs().max().item(), msg=each)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_errors_are_at_most_twice_those_of_the_plain_model(name, precision):
    model = plain(name).train()
    if precision.startswith("bfloat16"):
        model.bfloat16()
    if precision.endswith("adapters"):
        for each, parameter in model.named_parameters():
            parameter.data = parameter.data.float() if "lora_" in each else parameter.data
    pixels = clips(dtype=torch.bfloat16 if precision.startswith("bfloat16") else torch.float32)
    exact = outcome(twin(model).double(), name, pixels.double())
    accelerated = twin(model)
    accelerate(accelerated)
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else contextlib.nullcontext()
    with autocast:
        expected, found = outcome(model, name, pixels), outcome(accelerated, name, pixels)
    assert len(exact) > 24
    rounding = torch.finfo(torch.float32 if precision == "float32" else torch.bfloat16).eps / 4
    for each, truth in exact.items():
        ours, theirs = ((of[each].double() - truth).norm() / truth.norm() for of in (found, expected))
        assert ours <= 2 * theirs + rounding, (each, ours, theirs)
        assert found[each].dtype == expected[each].dtype


@pytest.mark.parametrize("name", NAMES)
def test_in_float64_nothing_but_the_order_of_sums_differs(name):
    model = plain(name).double()
    accelerated = twin(model)
    accelerate(accelerated)
    pixels = clips(dtype=torch.float64)
    expected, found = outcome(model, name, pixels), outcome(accelerated, name, pixels)
    for each, truth in expected.items():
        torch.testing.assert_close(found[each], truth, rtol=1e-11, atol=1e-11 * truth.abs().max().item(), msg=each)


@pytest.mark.parametrize("name", NAMES)
def test_in_training_the_same_seed_drops_the_same_entries(name):
    model = plain(name, lora_dropout=0.3).train()
    accelerated = twin(model)
    accelerate(accelerated)
    expected = outcome(model, name, clips())
    assert_same(name, outcome(accelerated, name, clips()), expected)
    assert not torch.equal(outcome(accelerated, name, clips(), seed=5)["embeddings"], expected["embeddings"])
    assert_same(name, outcome(accelerated.eval(), name, clips()), outcome(model.eval(), name, clips()))


def test_dropout_and_stochastic_depth_of_the_layers_themselves_are_kept():
    model = adapt(base("timesformer", hidden_dropout_prob=0.2), "timesformer", lora_dropout=0.1)
    drop_path = next(getattr(modeling_timesformer, each) for each in vars(modeling_timesformer) if "DropPath" in each)
    for layer in model.get_base_model().encoder.layer:
        layer.drop_path = drop_path(0.5)  # a configuration takes whole numbers only
    accelerated = twin(model.train())
    accelerate(accelerated)
    expected = outcome(model, "timesformer", clips())
    assert_same("timesformer", outcome(accelerated, "timesformer", clips()), expected)
    assert not torch.equal(outcome(model, "timesformer", clips(), seed=5)["embeddings"], expected["embeddings"])


@pytest.mark.parametrize("form", ["space_only", "joint_space_time"])
def test_of_other_forms_of_timesformer_the_attention_alone_is_replaced(form):
    # peft's targets name temporal layers, which these have not
    targets = r".*\.attention\.(?:attention\.qkv|output\.dense)"
    model = adapt(base("timesformer", attention_type=form), "timesformer", target_modules=targets)
    accelerated = twin(model)
    report = accelerate(accelerated)
    assert set(report.fused) == {"attention of TimeSformer", "lora_linear"}
    assert any(form in reason and "only its attention" in reason for reason in report.left)
    pixels = clips(1)[:, :1] if form == "space_only" else clips()
    assert_same("timesformer", outcome(accelerated, "timesformer", pixels), outcome(model, "timesformer", pixels))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_without_adapters_and_while_all_weights_are_trained(name, batch):
    model = base(name)
    accelerated = twin(model)
    accelerate(accelerated)
    with torch.no_grad():
        expected, found = (embed(each, name, clips(batch)) for each in (model, accelerated))
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    for each in (model, accelerated):
        each.requires_grad_(True)
        with torch.no_grad():  # nothing is trained where no gradient is wanted
            torch.testing.assert_close(embed(each, name, clips(batch)), expected, rtol=2e-5, atol=2e-5)
    warned = pytest.warns(FallbackWarning, match="the weights of the model itself are trained")
    with contextlib.nullcontext() if name == "timesformer" else warned:
        found = outcome(accelerated, name, clips(batch))
    assert_same(name, found, outcome(model, name, clips(batch)))


@pytest.mark.parametrize("name", NAMES)
def test_restore_gives_back_classes_attributes_and_bits(name):
    model = plain(name)
    before = [(type(module), dict(vars(module))) for module in model.modules()]
    printed, keys, expected = repr(model), list(model.state_dict()), outcome(model, name, clips())
    accelerate(model)
    assert list(model.state_dict()) == keys
    assert repr(model) != printed and "fused" in repr(model)
    assert all(isinstance(module, plain) for module, (plain, _) in zip(model.modules(), before, strict=True))
    assert [type(module).__name__ for module in model.modules()] == [plain.__name__ for plain, _ in before]
    restore(model)
    for module, (cls, attributes) in zip(model.modules(), before, strict=True):
        assert type(module) is cls
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[each] is value for each, value in attributes.items() if each[0] != "_")
    assert repr(model) == printed
    for each, tensor in outcome(model, name, clips()).items():
        assert torch.equal(tensor, expected[each])
    restore(model)  # nothing to undo


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("vjepa2", {"attention of V-JEPA 2": 3, "lora_linear": 12}),
        ("timesformer", {"attention of TimeSformer": 4, "layer of TimeSformer": 2, "lora_linear": 14}),
        ("videomae", {"attention of VideoMAE": 2, "lora_linear": 12}),
        ("clip", {"attention of CLIP's vision tower": 2, "lora_linear": 12}),
    ],
)
def test_the_report_counts_and_names_what_runs_fused_and_a_second_call_says_the_same(name, counts):
    model = plain(name)
    report = accelerate(model)
    assert {kind: len(names) for kind, names in report.fused.items()} == counts
    assert report.count == sum(counts.values())
    for names in report.fused.values():
        assert all(isinstance(model.get_submodule(each), Fused) for each in names)
    assert report.left == {}
    assert accelerate(model) == report
    written = str(report)
    assert written.startswith(f"{report.count} modules fused\n")
    assert all(kind in written for kind in counts)
    assert max(map(len, written.splitlines())) < 240 and "layer.*." in written.replace("layers", "layer")


def test_a_class_that_something_else_changed_since_is_not_taken_away():
    model = plain("timesformer")
    accelerate(model)
    layer = model.get_base_model().encoder.layer[1]
    layer.__class__ = type("Sharded", (type(layer),), {})
    with pytest.raises(RuntimeError, match=r"encoder.layer.1 became a Sharded after accelerate"):
        restore(model)
    layer.__class__ = type(layer).__base__
    restore(model)
    assert not any(isinstance(module, Fused) for module in model.modules())


def test_a_part_of_a_model_can_be_accelerated_and_the_rest_later():
    model = plain("videomae")
    first = accelerate(model.get_base_model().encoder.layer[0])
    both = accelerate(model)
    assert (first.count, both.count) == (7, 14)
    restore(model.get_base_model().encoder.layer[1])
    assert sum(isinstance(module, Fused) for module in model.modules()) == 7


def test_a_model_with_nothing_to_replace_is_refused_and_what_was_looked_for_is_named():
    with pytest.raises(ValueError, match="nothing to replace in Sequential") as raised:
        accelerate(nn.Sequential(nn.Linear(2, 2)))
    for looked_for in ("peft.tuners.lora.layer.Linear", "VJEPA2RopeAttention", "attn_implementation is 'sdpa'"):
        assert looked_for in str(raised.value)
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        accelerate("vjepa2")
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        restore("vjepa2")


def test_neither_library_is_imported_and_without_them_the_refusal_says_so():
    lines = (
        "import sys, torch, bgs_kernels",
        "try: bgs_kernels.accelerate(torch.nn.Linear(2, 2))",
        "except ValueError as error: print(error)",
        "bgs_kernels.restore(torch.nn.Linear(2, 2))",
        "assert not {'transformers', 'peft'} & set(sys.modules)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "transformers and peft not imported" in done.stdout


def test_the_text_tower_of_a_whole_clip_is_left_alone():
    shape = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    vision = dict(**shape, image_size=32, patch_size=16)
    text = dict(**shape, vocab_size=20, max_position_embeddings=8, eos_token_id=2)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    accelerated = twin(model)
    report = accelerate(accelerated)
    assert report.fused == {"attention of CLIP's vision tower": ("vision_model.encoder.layers.0.self_attn",)}
    assert report.left == {"CLIP's text tower: its attention is causal": ("text_model.encoder.layers.0.self_attn",)}
    words, pixels = torch.tensor([[3, 4, 2]]), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected, found = (each(input_ids=words, pixel_values=pixels) for each in (model, accelerated))
    assert torch.equal(found.logits_per_image, expected.logits_per_image)
    with pytest.raises(ValueError, match="CLIP's text tower"):
        accelerate(twin(model).text_model)


class Oblong(VJEPA2RopeAttention):
    """V-JEPA 2's attention over frames of another shape than the configuration's."""

    grid = (2, 4)

    def get_position_ids(self, x, masks=None):
        ids = torch.arange(x.size(1))
        return ids // 8, ids % 8 // 4, ids % 4


class Scaled(VJEPA2RopeAttention):
    """One that does something else."""

    def forward(self, hidden_states, position_mask=None, **kwargs):
        attended, weights = super().forward(hidden_states, position_mask, **kwargs)
        return 2 * attended, weights


class Reversed(VJEPA2RopeAttention):
    """One with positions of its own, and no word about a grid."""

    def get_position_ids(self, x, masks=None):
        return tuple(ids.flip(0) for ids in super().get_position_ids(x, masks))


def test_a_subclass_that_keeps_the_forward_is_served_at_its_own_grid():
    model = base("vjepa2")
    for layer in model.encoder.layer:
        layer.attention.__class__ = Oblong
    accelerated = twin(model)
    assert len(accelerate(accelerated).fused["attention of V-JEPA 2"]) == 3
    assert isinstance(accelerated.encoder.layer[0].attention, Oblong)
    tokens = torch.randn(2, 24, 32)
    expected, found = (each.encoder.layer[0].attention(tokens)[0] for each in (model, accelerated))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    square = base("vjepa2").encoder.layer[0].attention.get_position_ids(tokens)
    assert not torch.equal(square[1], model.encoder.layer[0].attention.get_position_ids(tokens)[1])


@pytest.mark.parametrize(
    ("cls", "said"),
    [(Scaled, "Scaled has a forward of its own"), (Reversed, "Reversed has positions of its own (get_position_ids)")],
)
def test_a_subclass_that_does_something_else_is_left_alone(cls, said):
    model = base("vjepa2")
    model.encoder.layer[0].attention.__class__ = cls
    report = accelerate(model)
    ((reason, names),) = report.left.items()
    assert reason.startswith(said) and names == ("encoder.layer.0.attention",)
    assert type(model.encoder.layer[0].attention) is cls


def test_an_instance_with_a_forward_put_on_it_is_left_alone():
    model = plain("clip")
    place = "base_model.model.vision_model.encoder.layers.1.self_attn.q_proj"
    model.get_submodule(place).forward = torch.zeros_like
    assert accelerate(model).left == {"its forward was replaced on the instance": (place,)}


class Turned(nn.Module):
    """Attention of another package, with one layer for queries, keys and values and positions handed in."""

    def __init__(self):
        super().__init__()
        self.config = base("clip").config
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, tokens, rope):
        heads = (layer(tokens).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return attention(*heads, rope=rope).transpose(1, 2).flatten(2)


class FusedTurned(FusedSelfAttention):
    kind = "attention of another package"

    def forward(self, tokens, rope):
        if reason := self.obstacle(0.0):
            self.fall_back(reason)
            return super().forward(tokens, rope)
        return attend(*project(self, tokens, self.query, self.key, self.value), heads=2, rope=rope)


def test_other_packages_add_families(monkeypatch):
    known = bgs_kernels.patch.families._families
    monkeypatch.setattr(bgs_kernels.patch.families, "_families", dict(known))
    model = nn.Sequential(Turned()).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to replace"):
        accelerate(model)
    register_family(Turned, FusedTurned)
    register_family(Turned, FusedTurned)  # a module that registers one may be imported again
    with pytest.raises(ValueError, match=r"Turned has a fused form already, .*FusedTurned"):
        register_family(Turned, FusedSelfAttention)
    tokens, rope = torch.randn(2, 18, 32), rope_table((2, 3, 3), 16, form="true")
    expected = model[0](tokens, rope)
    assert accelerate(model).fused == {"attention of another package": ("0",)}
    assert torch.equal(model[0](tokens, rope), expected)
    model[0].config._attn_implementation = "eager"
    with pytest.warns(FallbackWarning, match="^0 runs as without accelerate: attn_implementation is 'eager'"):
        assert torch.equal(model[0](tokens, rope), expected)
    restore(model)
    assert type(model[0]) is Turned


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", NAMES)
def test_copies_run_fused_and_are_restored_by_themselves(name, copied):
    model = plain(name)
    report = accelerate(model)
    other = copied(model)
    assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
    assert accelerate(other) == report
    expected = outcome(model, name, clips())
    for each, tensor in outcome(other, name, clips()).items():
        assert torch.equal(tensor, expected[each])
    restore(other)
    assert not any(isinstance(module, Fused) for module in other.modules())
    assert accelerate(model) == report


@pytest.mark.parametrize("name", NAMES)
def test_dtype_and_mode_may_change_after(name):
    model = plain(name, lora_dropout=0.5)
    accelerated = twin(model)
    accelerate(accelerated)
    for each in (model, accelerated):
        each.train().eval().half()
    expected, found = (outcome(each, name, clips(dtype=torch.float16)) for each in (model, accelerated))
    assert found["embeddings"].dtype == torch.float16
    for each, tensor in expected.items():
        assert (found[each].float() - tensor.float()).norm() < 0.02 * tensor.float().norm(), each


def test_the_table_of_rotations_is_made_once_for_a_grid_and_not_rounded_to_the_models_dtype(monkeypatch):
    made, used = [], []
    vjepa2 = importlib.import_module("bgs_kernels.patch.vjepa2")
    plain_attend = vjepa2.attend
    monkeypatch.setattr(vjepa2, "attend", lambda *a, **k: (used.append(k["rope"]), plain_attend(*a, **k))[1])
    rope = importlib.import_module("bgs_kernels.attention.rope")
    plain_make = rope._make
    monkeypatch.setattr(rope, "_make", lambda *a: (made.append(a), plain_make(*a))[1])
    rope._kept.cache_clear()
    model = plain("vjepa2").bfloat16()
    accelerate(model)
    outcome(model, "vjepa2", clips(dtype=torch.bfloat16))
    assert len(made) == 1 and len(used) == 2
    assert used[0] is used[1] and used[0].cos.dtype == torch.float32
    assert used[0].cos.shape == (2 * (SIDE // 16) ** 2, 16)
