"""The device code of csrc on a CPU: compiled by a C++ compiler with threads as fibers (tests/csrc/cuda_on_host.h),
called through the same Python as on a GPU, and compared with the reference in float64. ``BGS_ON_HOST_FLAGS`` gives the
compiler more options, "-fsanitize=undefined -fno-sanitize-recover" for example.
"""

import fcntl
import importlib.util
import itertools
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bgs_kernels import native
from bgs_kernels.dispatch import Request
from bgs_kernels.hybrid_loss import native_cuda, reference
from bgs_kernels.pairwise.reference import METRICS, pairwise_distance

ROOT = Path(__file__).parents[2]
SOURCES = ("tests/csrc/on_host.cpp", "csrc/cuda/hybrid_small_plan.cpp")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN = float("nan")
INF = float("inf")

BLOCKS = 3
"""Blocks of the grid: more would not show more, and each is 256 fibers."""


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    """Build the module once for all workers."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++")), None)
    if compiler is None or not importlib.util.find_spec("pybind11") or sys.platform != "linux":
        pytest.skip("needs Linux, a C++ compiler and pybind11")
    import pybind11

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    built = folder / f"_on_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "on_host.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            # fibers jump between stacks, which the checks of fortified longjmp forbid
            options = ["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-fPIC", "-shared"]
            options += os.environ.get("BGS_ON_HOST_FLAGS", "").split()
            folders = (sysconfig.get_path("include"), pybind11.get_include(), ROOT / "csrc", ROOT / "tests/csrc")
            command = [compiler, *options, *(f"-I{each}" for each in folders), *(ROOT / each for each in SOURCES)]
            done = subprocess.run([*command, "-o", built], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("_on_host", built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compute(on_host, monkeypatch):
    """``native_cuda.compute`` on tensors of the CPU, in memory full of rubbish, by a number of blocks in some order."""
    place = {}
    shim = SimpleNamespace(module=on_host, argument=native.argument, device_and_stream=lambda tensor: place["is"])
    monkeypatch.setattr(native_cuda, "native", shim)

    def empty(*shape, **options):
        buffer = torch.empty(*shape, **options)
        return buffer.fill_(NAN if buffer.is_floating_point() else 255)

    monkeypatch.setattr(native_cuda, "torch", SimpleNamespace(**vars(torch) | {"empty": empty}))

    def run(x, triplets, *, blocks=BLOCKS, backwards=False, with_gradient=True, **given):
        place["is"] = (blocks, int(backwards))
        given = DEFAULTS | given
        losses, terms, gradient = native_cuda.compute(x, triplets, *given.values(), with_gradient)
        return torch.cat((losses[None], terms)), gradient

    return run


DEFAULTS = dict.fromkeys(
    ("target", "target_embeddings", "mask", "weights", "triplet_weights", "triplet_targets", "lengths")
) | {
    "alpha": 0.7,
    "beta": 0.3,
    "triplet": "softmax",
    "temperature": 0.7,
    "margin": 0.2,
    "metric": "cosine",
    "target_metric": "cosine",
    "rsa": "pearson",
}
"""The arguments of ``native_cuda.compute`` after the first two, in their order."""


def refer(x, triplets, dtype, **given):
    """Compute the terms (4, B) and the gradient by the reference in a dtype."""
    x = x.detach().to(dtype).requires_grad_()
    if dtype == torch.float64:
        given = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in given.items()}
    terms = reference.hybrid_loss(x, triplets, **DEFAULTS | given)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), x)
    return torch.stack(terms).detach().double(), gradient.double()


ULPS = 8 * 2.0**-23
"""What a value may be off by beside twice the error of the reference, as in test_fused_parity.py."""

GRADIENT_ULPS = 2.0**-23
"""The same for the norm of a gradient: nothing but float32 is rounded to, whatever the dtype of the rows."""

CANCELLED = 1e-12
"""Norm of an exact gradient of which nothing is left but the rounding of float64: that of r = 1 for two pairs, say."""

ROUNDED_AWAY = 5e-3
"""What may be left of such a gradient in float32."""


def assert_parity(got, eager, exact, *, size=1.0):
    """Require the error to be at most twice that of the eager reference in float32, up to rounding.

    Args:
        got, eager, exact: terms (4, B) and gradients.
        size: the size of the distances that the loss and the triplet term are differences of.
    """
    for name, one, two, right in zip(("loss", "triplet", "rsa", "accuracy"), got[0], eager[0], exact[0], strict=True):
        assert torch.equal(one.isnan(), right.isnan()), name
        one, two, right = (each.nan_to_num(0.0) for each in (one, two, right))
        least = max(1.0, size) if name in ("loss", "triplet") else 1.0
        allowed = 2 * (two - right).norm() + ULPS * right.abs().clamp_min(least).norm()
        assert (one - right).norm() <= allowed, name
    one, two, right = got[1], eager[1], exact[1]
    assert one.shape == right.shape and one.dtype == torch.float32
    if right.norm() < CANCELLED:
        assert one.norm() < ROUNDED_AWAY
    else:
        assert (one - right).norm() <= 2 * (two - right).norm() + GRADIENT_ULPS * right.norm()


FACTORS = {
    "rows": (1, 2, 3, 17, 64, 129, 250),
    "columns": (1, 17, 64, 128, 200),
    "count": (0, 1, 500, 5000),
    "sets": (1, 3),
    "dtype": DTYPES,
    "metric": METRICS,
    "form": ("softmax", "shares", "margin"),
    "rsa": ("pearson", "cosine"),
    "target": (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int16, "rows", "none"),
    "gaps": ("none", "nan", "mask"),
    "weights": (None, torch.float32, torch.float64, torch.uint8),
    "triplet_weights": (None, torch.float32, torch.float64),
    "lengths": (None, torch.int64, torch.int32),
    "layout": ("contiguous", "transposed", "sliced", "expanded"),
    "integers": (torch.int64, torch.int32, torch.uint8),
    "alpha": (0.7, 0.0),
}


def covering_cases(seed=0):
    """Choose cases that hold every pair of values of two factors, large ones no more often than need be."""
    draw = random.Random(seed)
    left = {
        ((one, a), (two, b))
        for one, two in itertools.combinations(FACTORS, 2)
        for a in FACTORS[one]
        for b in FACTORS[two]
    }
    cases = []
    while left:
        pair = min(left, key=str)
        drawn = [{name: draw.choice(values) for name, values in FACTORS.items()} | dict(pair) for _ in range(40)]

        def worth(case):
            price = case["sets"] * (case["rows"] ** 2 * (case["columns"] + 100) / 1e6 + case["count"] / 2000)
            return len(left.intersection(itertools.combinations(case.items(), 2))) / (1 + price / 4)

        cases.append(max(drawn, key=worth))
        left.difference_update(itertools.combinations(cases[-1].items(), 2))
    return cases


CASES = covering_cases()


def identifier(case):
    return "-".join(str(value).removeprefix("torch.") for value in case.values())


def laid_out(tensor, layout):
    """Give the same values in other strides; ``expanded``: the first set for all of them."""
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    if layout == "sliced":
        return tensor.repeat_interleave(2, -1).repeat_interleave(3, -2)[..., 1::3, ::2]
    return tensor[:1].expand(tensor.shape) if layout == "expanded" else tensor


def made(case):
    """Make the arguments of a case: embeddings, triplets and the others by name."""
    sets, rows, columns, count = (case[name] for name in ("sets", "rows", "columns", "count"))
    layout = case["layout"]
    x = torch.randn(sets, rows, columns)
    if columns == 1:
        x += 2 * x.sign()  # the signs are all that an angle sees of one column
    x = laid_out(x.to(case["dtype"]), layout)
    sizes, given = [rows] * sets, {}
    if case["lengths"] is not None:
        sizes = [rows, max(2 * rows // 3, 1), 0] if sets > 1 else [rows - 1]
        given["lengths"] = torch.tensor(sizes, dtype=case["lengths"])
    triplets = torch.zeros(sets, count, 3, dtype=torch.int64)
    judged = torch.zeros(sets, count)
    for b, size in enumerate(sizes):
        if size >= 3:  # the triplets of a set with fewer items are padding
            triplets[b] = torch.rand(count, size).argsort(-1)[:, :3]
            judged[b] = torch.rand(count)
    if layout == "expanded":
        least = sizes.index(min(sizes))
        triplets, judged = (each[least].expand(each.shape) for each in (triplets, judged))
    triplets = laid_out(triplets, layout if layout != "expanded" else None).to(case["integers"])
    if case["triplet_weights"] is not None or min(sizes) < 3:
        given["triplet_weights"] = judged.to(case["triplet_weights"] or torch.float32)
    if case["form"] == "shares":
        given["triplet_targets"] = laid_out(torch.rand(sets, count, 3).softmax(-1), layout)

    if case["target"] == "rows":
        given["target_metric"] = METRICS[METRICS.index(case["metric"]) - 2]
        given["target_embeddings"] = laid_out(torch.randn(sets, rows, 33).to(case["dtype"]), layout)
    elif case["target"] != "none":
        target = torch.rand(sets, rows, rows) * (9 if case["target"] == torch.int16 else 1)
        if case["gaps"] == "nan" and case["target"].is_floating_point:
            target[torch.rand(sets, rows, rows) < 0.3] = NAN
        given["target"] = laid_out(target.to(case["target"]), layout)
    if case["gaps"] == "mask":
        given["mask"] = laid_out(torch.rand(sets, rows, rows) < 0.7, layout)
    if case["weights"] is not None:
        weights = torch.rand(sets, rows, rows) * (5 if case["weights"] == torch.uint8 else 1)
        weights[torch.rand(sets, rows, rows) < 0.2] = 0
        given["weights"] = laid_out(weights.to(case["weights"]), layout)
    if "lengths" in given and layout != "expanded":
        for b, size in enumerate(sizes):
            x[b, size:] = NAN
            if "target_embeddings" in given:
                given["target_embeddings"][b, size:] = INF
    given |= {
        "triplet": "margin" if case["form"] == "margin" else "softmax",
        "alpha": case["alpha"],
        "beta": 0.0 if case["target"] == "none" else 0.3,
        "rsa": case["rsa"],
        "metric": case["metric"],
    }
    return x, triplets, given


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_hybrid_loss(compute, case):
    x, triplets, given = made(case)
    got = compute(x, triplets, **given)
    eager, exact = (refer(x, triplets, dtype, **given) for dtype in (torch.float32, torch.float64))
    distances = pairwise_distance(x.double(), metric=case["metric"])
    assert_parity(got, eager, exact, size=float(distances.nan_to_num(0.0).abs().max()) / DEFAULTS["temperature"])
    if "lengths" in given:
        assert not got[1][torch.arange(x.shape[1]) >= given["lengths"][:, None]].any()
    terms, none = compute(x, triplets, with_gradient=False, **given)
    assert torch.equal(terms.nan_to_num(7.0), got[0].nan_to_num(7.0)) and none.shape == (0,)


@pytest.mark.parametrize(("rows", "columns", "sets"), [(500, 128, 1), (1024, 40, 1), (250, 64, 14), (300, 1024, 1)])
def test_large_tiles(compute, random_triplets, rows, columns, sets):
    x, triplets, target = (
        torch.randn(sets, rows, columns),
        random_triplets(sets, 900, rows=rows),
        torch.rand(rows, rows),
    )
    given = {"target": target.expand(sets, rows, rows), "metric": "correlation"}
    got = compute(x, triplets, **given)
    eager, exact = (refer(x, triplets, dtype, **given) for dtype in (torch.float32, torch.float64))
    assert_parity(got, eager, exact)


@pytest.mark.parametrize("rows", [40, 200])
def test_same_bits_whatever_the_blocks_and_their_order(compute, random_triplets, rows):
    """In reverse order threads that read what they did not wait for read something else."""
    sets = 3
    x, other = torch.randn(sets, rows, 70), torch.randn(sets, rows, 9)
    triplets, judged = random_triplets(sets, 700, rows=rows), torch.rand(sets, 700)
    given = {"target_embeddings": other, "weights": torch.rand(sets, rows, rows), "triplet_weights": judged}
    results = [
        compute(x, triplets, blocks=blocks, backwards=backwards, **given)
        for blocks, backwards in ((1, False), (1, True), (4, False), (4, True), (7, True))
    ]
    for terms, gradient in results[1:]:
        assert torch.equal(terms, results[0][0]) and torch.equal(gradient, results[0][1])


def test_more_triplets_than_chunks(compute):
    """Above 2**20 a chunk is more than one triplet a thread."""
    x, triplets = torch.randn(1, 6, 4), torch.rand(1, 2**20 + 300, 6).topk(3).indices
    given = {"triplet_weights": torch.rand(triplets.shape[:2]), "beta": 0.0}
    got = compute(x, triplets, **given)
    eager, exact = (refer(x, triplets, dtype, **given) for dtype in (torch.float32, torch.float64))
    assert_parity(got, eager, exact)


def test_sets_in_several_launches(compute, random_triplets, monkeypatch):
    x, triplets, target = torch.randn(5, 20, 8), random_triplets(5, 50, rows=20), torch.rand(5, 20, 20)
    at_once = compute(x, triplets, target=target)
    monkeypatch.setattr(native_cuda, "WORKSPACE", 2 * native_cuda.native.module.cuda_hybrid_loss_small_workspace(
        1, 20, 8, 0, 50, target=True, weights=False, triplet_weights=False, gradient=True
    ))  # fmt: skip
    one, two = compute(x, triplets, target=target)
    assert torch.equal(one, at_once[0]) and torch.equal(two, at_once[1])


def degenerate(name):
    """Make a (1, 20, 20) target and what comes with it that leave nothing to correlate."""
    target = torch.rand(1, 20, 20)
    one = torch.full_like(target, NAN)
    one[0, 3, 11] = 0.5
    return {
        "masked": {"target": target, "mask": torch.zeros(1, 20, 20, dtype=torch.bool)},
        "without weight": {"target": target, "weights": torch.zeros(1, 20, 20)},
        "NaN": {"target": torch.full_like(target, NAN)},
        "one pair": {"target": one},
        "below the diagonal": {"target": torch.where(torch.ones(20, 20).tril() > 0, target, NAN)},
        "without variance": {"target": torch.full_like(target, 0.7)},
        "as good as without variance": {"target": 1000 + 1e-4 * target},
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "masked",
        "without weight",
        "NaN",
        "one pair",
        "below the diagonal",
        "without variance",
        "as good as without variance",
    ],
)
def test_undefined_correlation_is_zero_without_gradient(compute, random_triplets, name):
    x, none = torch.randn(1, 20, 8), torch.zeros(1, 0, 3, dtype=torch.int64)
    terms, gradient = compute(x, none, **degenerate(name))
    assert terms[2] == 0 and terms[0] == 0 and terms[3].isnan() and not gradient.any()
    triplets = random_triplets(1, 30, rows=20)
    terms, gradient = compute(x, triplets, **degenerate(name))
    local, by_local = compute(x, triplets, beta=0.0)
    assert terms[2] == 0 and torch.equal(terms[:2], local[:2]) and torch.equal(gradient, by_local)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["zero", "equal"])
def test_collapsed_rows_score_chance_without_gradient(compute, random_triplets, name, metric):
    x = torch.zeros(1, 20, 8) if name == "zero" else torch.randn(8).expand(1, 20, 8)
    terms, gradient = compute(x, random_triplets(1, 30, rows=20), target=torch.rand(1, 20, 20), metric=metric)
    assert terms[2] == 0
    torch.testing.assert_close(terms[3], torch.tensor([1 / 3]))
    torch.testing.assert_close(terms[1], torch.tensor([3.0]).log())
    if metric != "dot":
        assert not gradient.any()


GEOMETRIES = {
    "a row without direction": lambda x: x.index_fill(1, torch.tensor([3, 8]), 0.0),
    "nearly collapsed": lambda x: x[:, :1] + 0.03 * x,
    "far away": lambda x: x + 100.0,
    "huge": lambda x: x * 1e6,
    "tiny": lambda x: x * 1e-6,
    "equal rows": lambda x: x.index_copy(1, torch.tensor([5, 6]), x[:, :2]),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_hard_geometries(compute, random_triplets, name, metric):
    x, triplets = GEOMETRIES[name](torch.randn(1, 32, 33)), random_triplets(1, 100, rows=32)
    distances = pairwise_distance(x.double(), metric=metric).abs()
    temperature = max(float(distances.mean()), 0.1)
    given = {"target": torch.rand(1, 32, 32), "metric": metric, "temperature": temperature}
    got = compute(x, triplets, **given)
    eager, exact = (refer(x, triplets, dtype, **given) for dtype in (torch.float32, torch.float64))
    if name in ("a row without direction", "equal rows"):  # distances of 1 or 0 that are equal up to rounding
        got[0][3] = eager[0][3] = exact[0][3]
    assert_parity(got, eager, exact, size=float(distances.max()) / temperature)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("metric", METRICS)
def test_row_that_is_not_finite_makes_all_nan_but_only_where_it_is_used(compute, random_triplets, metric, value):
    x, triplets = torch.randn(1, 20, 8), random_triplets(1, 30, rows=20)
    x[0, 7, 2] = value
    triplets[0, 4] = torch.tensor([1, 2, 7])
    target = torch.rand(1, 20, 20)
    terms, gradient = compute(x, triplets, target=target, metric=metric)
    assert terms.isnan().all() and gradient.isnan().any()
    others = triplets[:, (triplets[0] != 7).all(-1)]
    terms, _ = compute(x, others, target=target, metric=metric)
    assert terms[0].isnan() and terms[2].isnan() and terms[[1, 3]].isfinite().all()
    terms, gradient = compute(x, others, target=target, metric=metric, beta=0.0)
    assert terms[[0, 1, 3]].isfinite().all()
    without = x.clone()
    without[0, 7] = 0.0
    torch.testing.assert_close(gradient, refer(without, others, torch.float32, metric=metric, beta=0.0)[1].float())


def test_single_row_that_is_not_finite(compute):
    """It has no other pair than that with itself."""
    x, none = torch.randn(2, 5, 4), torch.zeros(2, 0, 3, dtype=torch.int64)
    x[:, :, 1] = NAN
    given = {"target": torch.rand(2, 5, 5), "lengths": torch.tensor([1, 0])}
    terms, _ = compute(x, none, **given)
    assert terms[2, 0].isnan() and terms[2, 1] == 0
    torch.testing.assert_close(terms.double(), refer(x, none, torch.float64, **given)[0], equal_nan=True)


def test_target_that_is_not_finite_counts_where_it_is_observed(compute):
    x, none, target = torch.randn(1, 20, 8), torch.zeros(1, 0, 3, dtype=torch.int64), torch.rand(1, 20, 20)
    target[0, 9, 3] = INF
    assert compute(x, none, target=target)[0][2].isfinite()
    target[0, 3, 9] = INF
    assert compute(x, none, target=target)[0][2].isnan()
    assert compute(x, none, target=target, mask=target < 1)[0][2].isfinite()
    other = torch.randn(1, 20, 8)
    other[0, 4, 4] = NAN
    assert compute(x, none, target_embeddings=other)[0][2].isnan()


def test_triplets_out_of_range_are_nan(compute, random_triplets):
    for index in (-1, 20, 2**40):
        triplets = random_triplets(2, 30, rows=20)
        triplets[1, 5, 1] = index
        terms, gradient = compute(torch.randn(2, 20, 8), triplets, target=torch.rand(2, 20, 20))
        assert terms[:, 0].isfinite().all() and terms[[0, 1, 3], 1].isnan().all()
        assert gradient[0].isfinite().all() and gradient[1].isnan().any()


def test_refuses_what_is_too_large(on_host):
    with pytest.raises(ValueError, match="expected at most 1024 rows of 1024 columns, got 1025 of 8 and 0"):
        on_host.cuda_hybrid_loss_small(
            *(None,) * 9, 1, 1025, 8, 0, 0, 0.7, 0.3, 0, 1.0, 0.2, 0, 0, 0, None, None, None, 0, 0, 0, 0
        )


def test_says_why_not(on_host, monkeypatch):
    request = Request({"embeddings": torch.zeros(1, 4, 4)})
    monkeypatch.setattr(native, "module", on_host)
    if not torch.cuda.is_available():
        assert native_cuda.why_not(request) == "no CUDA device"
    monkeypatch.setattr(native, "why_not_cuda", lambda: None)
    assert native_cuda.why_not(request) == "embeddings on cpu, not on a CUDA device"
    monkeypatch.undo()
    monkeypatch.setattr(native, "module", SimpleNamespace())
    assert native_cuda.why_not(request) == "bgs_kernels._native was built without CUDA"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("name", ["normal", "few values", "all equal", "infinite", "one"])
def test_keys_and_ties_of_ranks(on_host, name, sets, dtype):
    """All of the ranks but CUB's sort."""
    values = torch.randn(sets, 1 if name == "one" else 501, dtype=dtype)
    if name == "few values":
        values = values.round() * values.sign()
        values[values == 0] *= torch.randn(int((values == 0).sum()), dtype=dtype).sign()  # zeros of both signs
    elif name == "all equal":
        values[:] = -1.5
    elif name == "infinite":
        values[:, 3::7], values[:, 5::7] = INF, -INF
        values[:, ::5] *= 1e-40 if dtype == torch.float32 else 1e-310  # subnormal
    if name != "one":
        values[:, 2::9] = NAN
        values[:, 11::9] = -NAN
    ranks = torch.empty(values.shape, dtype=torch.float64)
    on_host.fractional_rank(native.argument(values), *values.shape, native.argument(ranks))
    smaller = (values[:, None, :] < values[:, :, None]).sum(-1)
    equal = (values[:, None, :] == values[:, :, None]).sum(-1)
    expected = torch.where(values.isnan(), NAN, smaller + (equal + 1) / 2.0)
    torch.testing.assert_close(ranks, expected.double(), rtol=0, atol=0, equal_nan=True)
