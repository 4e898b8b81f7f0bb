"""Attention by the Triton kernels against the reference in float64: values, log-sum-exps and gradients may be off by
twice what the reference is in the dtype they are given. All buffers of the kernels begin as NaN, so what is not written
shows.
"""

import importlib
import random

import pytest
import torch

from bgs_kernels import Rope, attention, rope_table

OP = "attention"
WITHOUT = ("reference", "sdpa")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN = float("nan")
INF = float("inf")

FACTORS = {
    "queries": (1, 9, 31, 65, 130),
    "keys": ("same", 1, 20, 64, 100),
    "head_dim": (16, 18, 32, 64, 80, 88, 128),
    "dtype": DTYPES,
    "rope": ("none", "tiled", "true"),
    "mask": ("none", "some"),
    "layout": ("contiguous", "model", "fused", "columns", "expanded"),
}
"""One query, blocks that are whole and that are not, heads of one and of two blocks, every layout in which models hand
over their tensors."""


def pairs_of(case):
    return {frozenset((one, two)) for one in case.items() for two in case.items() if one[0] < two[0]}


def is_possible(case):
    """Say whether a case can be: what is turned has as many keys as queries, and so has what one product gives."""
    return case["keys"] == "same" or (case["rope"] == "none" and case["layout"] != "fused")


def covering_cases(seed=0):
    """Choose cases in which every value of every factor meets every value of every other with which it can be: by the
    pairs that one adds, of some that are drawn."""
    draw = random.Random(seed)
    cases, left = [], None
    while left is None or left:
        drawn = [{name: draw.choice(values) for name, values in FACTORS.items()} for _ in range(2000)]
        drawn = [case for case in drawn if is_possible(case)]
        if left is None:
            left = set().union(*map(pairs_of, drawn))
        best = max(drawn, key=lambda case: len(pairs_of(case) & left))
        left -= pairs_of(best)
        cases.append(best)
    return cases


CASES = covering_cases()


def identifier(case):
    return "-".join(str(value).removeprefix("torch.") for value in case.values())


class TorchWithRubbish:
    """torch, but for what it says is empty."""

    @staticmethod
    def empty(*shape, **options):
        return torch.empty(*shape, **options).fill_(NAN)

    @staticmethod
    def empty_permuted(*shape, **options):
        return torch.empty_permuted(*shape, **options).fill_(NAN)

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def rubbish(monkeypatch, backend):
    """Hand the kernels buffers full of NaN."""
    monkeypatch.setattr(importlib.import_module("bgs_kernels.attention.launch"), "torch", TorchWithRubbish())


@pytest.fixture(autouse=True)
def on_the_device(device):
    """Make tensors where the kernels run; ``device`` must come first, for the backend of the test decides."""


def laid_out(rows, layout):
    """Give queries, keys and values in the strides of a layout, and some of the values changed by it."""
    if layout == "model":  # what a model makes of three projections
        return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in rows]
    if layout == "fused":  # what it makes of one
        fused = torch.stack([x.transpose(1, 2) for x in rows], 2)
        return [x.transpose(1, 2) for x in fused.unbind(2)]
    if layout == "columns":
        return [x.mT.contiguous().mT for x in rows]
    if layout == "expanded":  # heads that share keys and values
        return [rows[0], *(x[:, :1].expand(x.shape) for x in rows[1:])]
    return list(rows)


def made(case):
    """Make the arguments of a case and a gradient by its outputs."""
    rows, width = case["queries"], case["head_dim"]
    keys = rows if case["keys"] == "same" else case["keys"]
    few = max(rows, keys) <= 32
    sets, heads = (2, 3) if few else (2, 1) if case["mask"] == "some" else (1, 2)  # more than a program takes, or few
    shapes = ((sets, heads, rows, width), (sets, heads, keys, width), (sets, heads, keys, width))
    given = laid_out([torch.randn(shape).to(case["dtype"]) for shape in shapes], case["layout"])
    rope = None
    if case["rope"] != "none":
        grid = (rows // 5, 1, 5) if rows % 5 == 0 else (1, 1, rows)
        rope = rope_table(grid, width, form=case["rope"], spatial_extent=15.0, device=given[0].device)
    mask = None
    if case["mask"] == "some":
        mask = torch.rand(sets, keys) < 0.6
        mask[0] = False
        mask[1, keys // 2 :] = False  # the last blocks have none
        mask[1, 0] = True
    upstream = torch.randn(sets, rows, heads, width).to(case["dtype"]).transpose(1, 2)
    return given, {"rope": rope, "key_mask": mask}, upstream


def evaluated(given, how, upstream, backend, dtype=None):
    """Compute outputs, log-sum-exps and the three gradients, in float64."""
    given = [x.detach().to(dtype or x.dtype).requires_grad_() for x in given]
    if dtype is not None and how.get("rope") is not None:
        how = how | {"rope": Rope(how["rope"].cos.to(dtype), how["rope"].sin.to(dtype))}
    attended, lse = attention(*given, **how, return_lse=True, backend=backend)
    gradients = torch.autograd.grad(attended, given, upstream.to(attended.dtype))
    return [x.detach().double() for x in (attended, lse, *gradients)]


NAMES = ("values", "log-sum-exps", "by query", "by key", "by value")

ROUNDING = 3e-6
"""What an entry may be off by where the reference is exact by accident, of a single key say; entries are of order 1."""


def assert_parity(given, how, upstream, off=0.0):
    """Compare; ``off``: what gradients may be off by, relative to themselves."""
    got, eager = (evaluated(given, how, upstream, backend) for backend in ("triton", "reference"))
    exact = evaluated(given, how, upstream, "reference", torch.float64)
    for name, one, two, right in zip(NAMES, got, eager, exact, strict=True):
        infinite = right.isinf()
        assert torch.equal(one.isinf(), infinite), name
        one, two, right = (each.masked_fill(infinite, 0.0) for each in (one, two, right))
        allowed = 2 * (two - right).norm() + ROUNDING * right.numel() ** 0.5
        if name.startswith("by"):
            allowed += off * right.norm()
        assert (one - right).norm() <= allowed, name
    return got


def test_cases_have_every_value_and_both_kinds_of_kernels():
    for name, values in FACTORS.items():
        assert {case[name] for case in CASES} == set(values)
    launch = importlib.import_module("bgs_kernels.attention.launch")
    kinds = set()
    for case in CASES:
        (query, key, _), how, _ = made(case)
        cos = None if how["rope"] is None else how["rope"].cos
        kinds.add((launch.small_block(query, key, cos) is None, how["key_mask"] is None))
    assert len(kinds) == 4


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_attention(case):
    given, how, upstream = made(case)
    attended, lse, *gradients = assert_parity(given, how, upstream)
    if how["key_mask"] is not None:  # set 0 has no key
        assert not attended[0].any() and (lse[0] == -INF).all()
        assert not any(gradient[0].any() for gradient in gradients)
        assert not gradients[1][1].mT[..., ~how["key_mask"][1]].any()
        assert not gradients[2][1].mT[..., ~how["key_mask"][1]].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [20, 70])
def test_scores_of_all_sizes(dtype, rows):
    """Maxima that rise from block to block up to 1,000, and a scale of one's own. A log-sum-exp of 1,000 is known to
    2^-15 in float32, and so is what the backward makes of it: half of that was needed, and none beside halves."""
    query, key, value = (torch.randn(1, 2, rows, 32).to(dtype) for _ in range(3))
    key = key * torch.linspace(0.01, 30, rows).to(dtype)[:, None]
    off = 2**-15 if dtype == torch.float32 else 0.0
    assert_parity((query, key, value), {"scale": 1.3}, torch.randn(1, 2, rows, 32).to(dtype), off=off)


def poisoned(name, value, rows):
    """Make (2, 2, rows, 16) queries, keys and values with one entry of one head that is not finite."""
    given = {each: torch.randn(2, 2, rows, 16) for each in ("query", "key", "value")}
    given[name][1, 0, rows // 2, 3] = value
    return list(given.values())


@pytest.mark.parametrize("rows", [20, 70])
def test_scores_that_are_all_far_below_zero(rows):
    """A key that is not there has a score of 0 and would have a probability of e^300.

    The scores are exact in any order of their sums: the gradient makes the probabilities anew, and with other roundings
    of scores this large they would not be the forward's. Their log-sum-exps, near 450 in base 2, are rounded to 3e-5.
    """
    query, value = torch.ones(1, 2, rows, 16), torch.randn(1, 2, rows, 16)
    key = torch.randint(256, (1, 2, rows, 16)) / 256 - 20
    assert_parity((query, key, value), {"scale": 1.0}, torch.randn(1, 2, rows, 16), off=3e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("rows", [9, 65])
@pytest.mark.parametrize("masked", ["taking part", "masked"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_what_is_not_finite_goes_where_the_reference_has_it_and_no_further(name, value, masked, rows):
    given = poisoned(name, value, rows)
    mask = torch.ones(2, rows, dtype=torch.bool)
    mask[:, rows // 2] = masked == "taking part"
    upstream = torch.randn(2, 2, rows, 16)
    got, right = (evaluated(given, {"key_mask": mask}, upstream, each) for each in ("triton", "reference"))
    for what, one, two in zip(NAMES, got, right, strict=True):
        assert one[0].isfinite().all() and one[1, 1].isfinite().all(), what  # other heads, of one program or not
        if what == "log-sum-exps":
            assert torch.equal(one.isfinite(), two.isfinite())
            continue
        if what in ("by key", "by value") and masked == "masked":  # nobody looks at the gradient there
            one, two = (each[:, :, torch.arange(rows) != rows // 2] for each in (one, two))
        assert torch.equal(one.isnan(), two.isnan()), what


@pytest.mark.parametrize(("rows", "others"), [(16, 128), (128, 16)])
def test_tiles_of_other_shapes(monkeypatch, rows, others):
    """What a search may choose: blocks that are higher than wide, wider than high, and larger than what there is."""
    launch = importlib.import_module("bgs_kernels.attention.launch")
    monkeypatch.setattr(launch, "chosen", lambda *given: launch.tuning.Tiles(rows, others, 0))
    query, key, value, upstream = (torch.randn(1, 1, count, 80) for count in (70, 50, 50, 70))
    assert_parity((query, key, value), {}, upstream)


@pytest.mark.parametrize("width", [1, 8, 16, 18, 24, 32, 40, 64, 72, 80, 88, 96, 104, 112, 128])
def test_heads_are_cut_into_blocks_that_cover_them(width):
    tiles = importlib.import_module("bgs_kernels.attention.tiles")
    parts = tiles.parts
    first, second = parts(width)
    assert first + second >= width and all(each == 0 or each & (each - 1) == 0 for each in (first, second))
    assert first <= width or second == 0  # a first block beside a second is full
    assert first + second < 2 * max(width, tiles.LEAST)
    assert parts(80) == (64, 16) and parts(88) == (64, 32) and parts(104) == (128, 0) and parts(18) == (32, 0)


def test_same_bits_every_time():
    given, how, upstream = made({name: values[-1] for name, values in FACTORS.items()} | {"keys": "same"})
    for one, two in zip(*(evaluated(given, how, upstream, "triton") for _ in range(2)), strict=True):
        assert torch.equal(one, two)
