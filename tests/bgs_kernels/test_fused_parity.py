"""The kernels of every backend against the reference in float64: their error may be twice that of the reference in the
dtype they are given.

A covering array takes the place of the full product of sizes, dtypes, metrics and features: every value of every factor
meets every value of every other. All buffers of the kernels begin as rubbish, so what is not written shows.
"""

import importlib
import itertools
import random

import pytest
import torch

from bgs_kernels import (
    TripletIndex,
    hybrid_loss,
    native,
    pairwise_distance,
    rsa_correlation,
    triplet_loss,
    use_backend,
)

OP = "hybrid_loss"
WITHOUT = ("reference",)

METRICS = ("cosine", "correlation", "euclidean", "sqeuclidean", "dot")
HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALVES)
NAN = float("nan")
INF = float("inf")

FACTORS = {
    "rows": (2, 3, 17, 64, 129, 250),
    "columns": (1, 17, 64, 128, 200),
    "count": (0, 1, 5000),
    "sets": (1, 3),
    "dtype": DTYPES,
    "metric": METRICS,
    "form": ("softmax", "shares", "margin"),
    "rsa": ("pearson", "cosine"),
    "target": ("float32", "float64", "bfloat16", "rows", "other rows", "none"),
    "gaps": ("none", "nan", "mask"),
    "weights": ("none", "some"),
    "triplet_weights": ("none", "some"),
    "lengths": ("none", "some"),
    "layout": ("contiguous", "transposed", "sliced", "expanded"),
    "integers": (torch.int64, torch.int32, torch.uint8),
    "judged": ("tensor", "index"),
    "route": ("matrix", "places"),
}


def price(case):
    """About how many tiles of 32 rows the interpreter could do in the time of a case: triplets cost it as well, and so
    does every row that is gathered through its places."""
    triplets = (8 + case["rows"] / 8 * (case["route"] == "places")) * (case["count"] > 1)
    return case["sets"] * ((-(-case["rows"] // 32)) ** 2 + triplets)


TILES_PER_PAIR = 4
"""How many tiles a case may take for every new pair that it brings."""


def in_force(case):
    """Leave out what has no effect in a case: what is about triplets or targets that it does not have."""
    without = set()
    if not case["count"]:
        without |= {"form", "triplet_weights", "integers", "judged", "route"}
    if case["target"] == "none":
        without |= {"rsa", "gaps", "weights"}
    if case["target"] in ("rows", "other rows") and case["gaps"] == "nan":
        without.add("gaps")
    return {name: value for name, value in case.items() if name not in without}


def pairs_of(case):
    return set(itertools.combinations(in_force(case).items(), 2))


def covering_cases(seed=0):
    """Choose cases in which every pair of values of two factors that can be in force together is: greedily, by the
    pairs that a case adds and its price."""
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
        drawn = [{name: draw.choice(values) for name, values in FACTORS.items()} | dict(pair) for _ in range(60)]
        drawn = [case for case in drawn if pair in pairs_of(case)]
        left.discard(pair)
        if drawn:
            cases.append(max(drawn, key=lambda case: len(pairs_of(case) & left) - price(case) / TILES_PER_PAIR))
            left -= pairs_of(cases[-1])
    return cases


CASES = covering_cases()


def name_of(value):
    return str(value).removeprefix("torch.").replace(" ", "_")


def identifier(case):
    return "-".join(map(name_of, case.values()))


@pytest.fixture(autouse=True)
def rubbish(fill_with_rubbish, backend):
    """Hand the kernels buffers full of rubbish."""
    if backend == "triton":
        fill_with_rubbish("bgs_kernels.hybrid_loss.launch", "bgs_kernels.pairwise.fused")
    else:
        fill_with_rubbish("bgs_kernels.hybrid_loss.native", "bgs_kernels.pairwise.native")
        native.module.poison(True)
    yield
    if backend == "native":
        native.module.poison(False)


@pytest.fixture(autouse=True)
def chosen(backend):
    """Run what asks for no backend on that of the test."""
    with use_backend(backend):
        yield


@pytest.fixture(autouse=True)
def on_the_device(device):
    """Make tensors where the kernels run; ``device`` must come first, for the backend of the test decides."""


@pytest.fixture
def take_route(monkeypatch, backend):
    """Send the triplets' gradient through an N x N matrix or through the places of rows, whatever the sizes."""

    def take(route):
        if backend == "triton":
            launch = importlib.import_module("bgs_kernels.hybrid_loss.launch")
            monkeypatch.setattr(launch, "MATRIX_ENTRIES_PER_TRIPLET", 10**9 if route == "matrix" else 0)
        elif route == "places":  # as if the matrix were too large to keep
            hybrid_native = importlib.import_module("bgs_kernels.hybrid_loss.native")
            monkeypatch.setattr(hybrid_native, "SMALL_ROWS", 0)
            monkeypatch.setattr(hybrid_native, "KEPT_BYTES", 0)

    return take


def laid_out(tensor, layout):
    """Give the same values in other strides; ``expanded``: the first set for all of them."""
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    if layout == "sliced":
        return tensor.repeat_interleave(2, -1).repeat_interleave(3, -2)[..., 1::3, ::2]
    if layout == "expanded":
        return tensor[:1].contiguous().expand(tensor.shape)
    return tensor


def made(case):
    """Make the arguments of a case: embeddings, triplets and the others by name."""
    sets, rows, columns, count = (case[name] for name in ("sets", "rows", "columns", "count"))
    layout = case["layout"]
    lengths = None
    sizes = [rows] * sets
    if case["lengths"] == "some":
        sizes = [rows, max(2 * rows // 3, 1), 0] if sets > 1 else [rows - 1]
        lengths = torch.tensor(sizes)
    x = torch.randn(sets, rows, columns)
    if columns == 1:
        x += 2 * x.sign()  # the signs are all that an angle sees of one column
    x = laid_out(x.to(case["dtype"]), layout)
    given = {"lengths": lengths}

    triplets = torch.zeros(sets, count, 3, dtype=torch.int64)
    judged = torch.zeros(sets, count)
    for b, size in enumerate(sizes):
        if size >= 3:  # the triplets of a set with fewer items are padding
            triplets[b] = torch.rand(count, size).argsort(-1)[:, :3]
            judged[b] = torch.rand(count)
            if count > 1:
                judged[b, torch.rand(count) < 0.2] = 0
    if layout == "expanded":
        least = sizes.index(min(sizes))
        triplets, judged = (each[least].expand(each.shape) for each in (triplets, judged))
    else:
        triplets = laid_out(triplets, layout)
    triplets = triplets.to(case["integers"])
    if case["triplet_weights"] == "some" or min(sizes) < 3:
        given["triplet_weights"] = judged
    if case["form"] == "shares":
        given["triplet_targets"] = laid_out(torch.rand(sets, count, 3).softmax(-1), layout)
    if case["judged"] == "index":
        triplets = TripletIndex(triplets[0] if layout == "expanded" else triplets, rows)

    if case["target"] in ("rows", "other rows"):
        dtype = case["dtype"]
        if case["target"] == "other rows":
            dtype = DTYPES[DTYPES.index(dtype) - 1]
            given["target_metric"] = METRICS[METRICS.index(case["metric"]) - 2]
        given["target_embeddings"] = laid_out(torch.randn(sets, rows, 33).to(dtype), layout)
    elif case["target"] != "none":
        target = torch.rand(sets, rows, rows)
        if case["gaps"] == "nan":
            target[torch.rand(sets, rows, rows) < 0.3] = NAN
        given["target"] = laid_out(target.to(getattr(torch, case["target"])), layout)
    if case["gaps"] == "mask":
        given["mask"] = laid_out(torch.rand(sets, rows, rows) < 0.7, layout)
    if case["weights"] == "some":
        weights = torch.rand(sets, rows, rows)
        weights[torch.rand(sets, rows, rows) < 0.2] = 0
        given["weights"] = laid_out(weights, layout)
    if lengths is not None and layout != "expanded":
        for b, size in enumerate(sizes):
            x[b, size:] = NAN
            if "target_embeddings" in given:
                given["target_embeddings"][b, size:] = INF
    given |= {
        "triplet": "margin" if case["form"] == "margin" else "softmax",
        "beta": 0.0 if case["target"] == "none" else 0.3,
        "rsa": case["rsa"],
        "metric": case["metric"],
        "temperature": 0.7,
    }
    return x, triplets, given


def evaluate(x, triplets, given, *, backend, dtype=None):
    """Compute the terms of every set (4, B) and the gradient of the losses' weighted sum, both in float64."""
    x = x.detach().to(dtype or x.dtype).requires_grad_()
    if dtype == torch.float64:
        given = {
            name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in given.items()
        }
    terms = hybrid_loss(x, triplets, backend=backend, reduction="none", return_terms=True, **given)
    upstream = torch.linspace(1, 2, len(x), dtype=terms.loss.dtype)
    (gradient,) = torch.autograd.grad(terms.loss, x, upstream)
    assert gradient.dtype == x.dtype and gradient.shape == x.shape
    return torch.stack(terms).detach().double(), gradient.double()


ULPS = 8 * 2.0**-23
"""What a value may be off by, relative to the largest of itself, 1 and the distances it is made of, beside twice the
error of the reference: that one is a single number and at times right to the last bit by luck. The worst seen
needed 4.2 units of 2**-23."""

GRADIENT_ULPS = {dtype: torch.finfo(dtype).eps / (1 if dtype == torch.float32 else 8) for dtype in DTYPES}
"""The same for the norm of a gradient, where luck evens out: the worst draw needed 0.5 of one unit in float32. Beside
rows of half precision the weights that they are summed with are rounded as well as the sum."""

CANCELLED = 1e-12
"""Norm of an exact gradient of which nothing is left but the rounding of float64: that of r = 1 for two pairs, say."""

ROUNDED_AWAY = 5e-3
"""What may be left of such a gradient in float32, whose parts are of the order of 1 to 1000."""

EXACT_PRODUCTS = 2.0**-24
"""What a distance of rows of half precision may be off by under "cosine" in Triton's kernels: it is 1 less a product of
the rows as they are, and the reference's distance of nearly parallel rows is nearer than that. The worst draw needed
2**-27 in the interpreter, whose sums are exacter than those of tensor cores."""


def assert_parity(got, eager, exact, dtype, *, size=1.0, off=0.0):
    """Require the error of terms and gradient to be no more than twice that of the eager reference, up to rounding.

    Args:
        got, eager, exact: what ``evaluate`` returns.
        dtype: that of the embeddings.
        size: the size of the distances that the loss and the triplet term are differences of.
        off: what all may be off by, the gradient relative to itself, because of distances that are.
    """
    for name, one, two, right in zip(("loss", "triplet", "rsa", "accuracy"), got[0], eager[0], exact[0], strict=True):
        assert torch.equal(one.isnan(), right.isnan()), name
        one, two, right = (each.nan_to_num(0.0) for each in (one, two, right))
        least = max(1.0, size) if name in ("loss", "triplet") else 1.0
        allowed = 2 * (two - right).norm() + ULPS * right.abs().clamp_min(least).norm() + off
        assert (one - right).norm() <= allowed, name
    one, two, right = got[1], eager[1], exact[1]
    if right.norm() < CANCELLED:
        assert one.norm() < ROUNDED_AWAY
    else:
        assert (one - right).norm() <= 2 * (two - right).norm() + (GRADIENT_ULPS[dtype] + off) * right.norm()


def compared(x, triplets, given):
    """Evaluate the kernels, the reference in the same dtype, and the reference in float64."""
    return (
        evaluate(x, triplets, given, backend="auto"),
        evaluate(x, triplets, given, backend="reference"),
        evaluate(x, triplets, given, backend="reference", dtype=torch.float64),
    )


def test_cases_cover_every_pair_of_values():
    met = set().union(*map(pairs_of, CASES))
    for one, two in itertools.combinations(FACTORS, 2):
        for a in FACTORS[one]:
            for b in FACTORS[two]:
                without = {one, two} - set(in_force(dict.fromkeys(FACTORS) | {"count": 1} | {one: a, two: b}))
                assert without or ((one, a), (two, b)) in met, (one, a, two, b)


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_hybrid_loss(take_route, case):
    take_route(case["route"])
    x, triplets, given = made(case)
    got, eager, exact = compared(x, triplets, given)
    distances = pairwise_distance(x.double(), metric=case["metric"], backend="reference")
    size = float(distances.nan_to_num(0.0).abs().max()) / given["temperature"]
    assert_parity(got, eager, exact, x.dtype, size=size)
    if given["lengths"] is not None:
        padding = torch.arange(x.shape[1]) >= given["lengths"][:, None]
        assert not got[1][padding].any()


def largest(metric, dtype):
    """How far from 1 the entries of rows may be, as a power of ten, before their distances leave a dtype's range."""
    if dtype == torch.float16:
        return 3
    if dtype == torch.bfloat16 and metric in ("cosine", "correlation"):
        return 15  # under "cosine" rows that are larger or smaller still count as not finite
    return {"cosine": 30, "correlation": 30, "euclidean": 15}.get(metric, 7)


FAR = 100.0
"""How far away rows are that lie about 1 apart."""


def geometry(name, metric, dtype):
    """Make (32, 33) rows that are hard to compare."""
    x = torch.randn(32, 33)
    if name == "huge":
        x *= 10.0 ** largest(metric, dtype)
    elif name == "tiny":
        x *= 10.0 ** -largest(metric, dtype)
    elif name == "of all sizes":
        x *= 10.0 ** torch.linspace(-3, 3, 32)[:, None]
    elif name == "duplicates":
        x[16:] = x[:16]
    elif name == "zero":
        x[::3] = 0
    elif name == "constant":
        x[::3] = torch.randn(11, 1)
    elif name == "far away":
        x += FAR
    elif name == "nearly parallel":
        x = torch.randn(33) + 0.02 * x
    return x.to(dtype)


GEOMETRIES = ("huge", "tiny", "of all sizes", "duplicates", "zero", "constant", "far away", "nearly parallel")


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_rows_that_are_hard_to_compare(take_route, random_triplets, backend, metric, name, dtype):
    place = METRICS.index(metric) + GEOMETRIES.index(name)
    take_route(("matrix", "places")[place % 2])
    x = geometry(name, metric, dtype)
    distances = pairwise_distance(x.double(), metric=metric, backend="reference")
    given = {
        "target": torch.rand(1, 32, 32),
        "lengths": None,
        "metric": metric,
        "triplet": ("softmax", "margin")[place // 2 % 2],
        "temperature": float(distances.abs().mean()),
        "margin": 0.3 * float(distances.abs().mean()),
    }
    got, eager, exact = compared(x[None], random_triplets(1, 100, rows=32), given)
    scale = given["temperature"] if given["triplet"] == "margin" else 1.0
    for terms, _ in (got, eager, exact):
        terms[:2] /= max(scale, 1.0)  # ULPS are relative to the size of the distances
    off = 0.0
    if backend == "triton" and metric == "cosine" and dtype in HALVES and name in ("far away", "nearly parallel"):
        above = torch.ones(32, 32).triu(1) > 0
        off = EXACT_PRODUCTS / float(distances[above].std())
    if name in ("zero", "constant"):  # distances of 1 that are equal up to rounding: whose is smaller is luck
        got[0][3] = eager[0][3] = exact[0][3]
    assert_parity(got, eager, exact, dtype, off=off)
    if name == "zero" and metric in ("cosine", "correlation"):
        assert not got[1][0, ::3].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("form", ["softmax", "margin"])
@pytest.mark.parametrize("metric", METRICS)
def test_gradient_of_rows_that_nearly_collapsed(take_route, random_triplets, metric, form, dtype):
    """Where (x - y) is a hundredth of x, weights of x and y that are rounded apart leave an error of many per cent."""
    take_route("matrix" if form == "softmax" else "places")
    x = (torch.randn(128) + 0.03 * torch.randn(1, 32, 128)).to(dtype)
    given = {"target": torch.rand(1, 32, 32), "lengths": None, "metric": metric, "triplet": form}
    got, eager, exact = compared(x, random_triplets(1, 100, rows=32), given)
    one, two, right = got[1], eager[1], exact[1]
    assert (one - right).norm() <= 2 * (two - right).norm() + GRADIENT_ULPS[dtype] * right.norm()


@pytest.mark.parametrize("columns", [300, 768])
@pytest.mark.parametrize("sign", [1, -1])
def test_mean_of_rows_far_from_zero(sign, columns):
    """What the mean of a row is rounded by stays in all of its entries and nearly all of it in the gradient, which has
    no such part: of a mean that is summed once the error is two to five times the reference's."""
    x, upstream = torch.randn(24, columns) + sign * FAR, torch.randn(24, 24)

    def gradient(backend, dtype):
        given = x.to(dtype).requires_grad_()
        distances = pairwise_distance(given, metric="correlation", backend=backend)
        return torch.autograd.grad(distances, given, upstream.to(dtype))[0].double()

    eager, exact = gradient("reference", torch.float32), gradient("reference", torch.float64)
    assert (gradient("auto", torch.float32) - exact).norm() <= 2 * (eager - exact).norm()


def degenerate(name):
    """Make a (20, 20) target and what comes with it that leave nothing to correlate."""
    target, none = torch.rand(20, 20), {}
    one = torch.full((20, 20), NAN)
    one[3, 11] = 0.5
    return {
        "masked": (target, {"mask": torch.zeros(20, 20, dtype=torch.bool)}),
        "without weight": (target, {"weights": torch.zeros(20, 20)}),
        "NaN": (torch.full_like(target, NAN), none),
        "one pair": (one, none),
        "below the diagonal": (torch.where(torch.ones(20, 20).tril() > 0, target, NAN), none),
        "without variance": (torch.full_like(target, 0.7), none),
        "as good as without variance": (1000 + 1e-4 * target, none),
    }[name]


UNDEFINED = (
    "masked",
    "without weight",
    "NaN",
    "one pair",
    "below the diagonal",
    "without variance",
    "as good as without variance",
)


@pytest.mark.parametrize("name", UNDEFINED)
def test_undefined_correlation_is_zero_without_gradient(random_triplets, name):
    target, how = degenerate(name)
    x = torch.randn(20, 8, requires_grad=True)
    r = rsa_correlation(x, target, backend="auto", **how)
    assert r == 0 and not torch.autograd.grad(r, x)[0].any()
    triplets = random_triplets(30, rows=20)
    terms = hybrid_loss(x, triplets, target, beta=0.5, return_terms=True, backend="auto", **how)
    local = triplet_loss(x, triplets, backend="auto")
    assert terms.rsa == 0 and torch.equal(terms.triplet, local)
    right = 0.7 * torch.autograd.grad(local, x)[0]
    torch.testing.assert_close(torch.autograd.grad(terms.loss, x)[0], right)


@pytest.mark.parametrize("route", ["matrix", "places"])
@pytest.mark.parametrize("metric", ["cosine", "correlation", "euclidean", "sqeuclidean"])
@pytest.mark.parametrize("name", ["zero", "equal"])
def test_collapsed_rows_score_chance_without_gradient(take_route, random_triplets, name, metric, route):
    take_route(route)
    x = torch.zeros(20, 8) if name == "zero" else torch.randn(8).expand(20, 8)
    x = x.clone().requires_grad_()
    triplets = random_triplets(30, rows=20)
    terms = hybrid_loss(x, triplets, torch.rand(20, 20), metric=metric, return_terms=True, backend="auto")
    assert terms.rsa == 0
    torch.testing.assert_close(terms.accuracy, torch.tensor(1 / 3))
    torch.testing.assert_close(terms.triplet, torch.tensor(3.0).log())
    assert not torch.autograd.grad(terms.loss, x)[0].any()
    distances = pairwise_distance(x, metric=metric, backend="auto")
    apart = name == "zero" and metric in ("cosine", "correlation")
    assert torch.equal(distances[0, 1:].detach(), torch.full((19,), float(apart)))
    assert not torch.autograd.grad(distances.sum(), x)[0].any()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("metric", METRICS)
def test_row_that_is_not_finite_makes_all_nan_but_only_where_it_is_used(random_triplets, metric, value):
    place = METRICS.index(metric)
    x = torch.randn(20, 8).to(DTYPES[place % 3])
    x[7, 2] = value
    x.requires_grad_()
    triplets, target = random_triplets(30, rows=20), torch.rand(20, 20)
    triplets[4] = torch.tensor([1, 2, 7])
    how = {"metric": metric, "backend": "auto"}
    terms = hybrid_loss(x, triplets, target, return_terms=True, **how)
    assert all(term.isnan() for term in terms)
    assert torch.autograd.grad(terms.loss, x)[0].isnan().any()
    terms = hybrid_loss(x, triplets[(triplets != 7).all(-1)], target, return_terms=True, **how)
    assert terms.loss.isnan() and terms.rsa.isnan() and terms.triplet.isfinite() and terms.accuracy.isfinite()
    target[3, 9] = INF  # an observed target that is no number
    assert rsa_correlation(torch.randn(20, 8), target, **how).isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("rows", "others", "columns"), [(1, 2, 17), (9, 70, 5), (65, 4, 200), (40, None, 64)])
def test_pairwise_distance(metric, dtype, rows, others, columns):
    x = torch.randn(2, columns, rows).to(dtype).mT
    y = None if others is None else torch.randn(others, columns).to(dtype).expand(2, others, columns)
    upstream = torch.randn(2, others or rows, rows).mT

    def evaluated(backend, dtype):
        given = [each.to(dtype).requires_grad_() for each in (x, y) if each is not None]
        distances = pairwise_distance(*given, metric=metric, backend=backend)
        gradients = torch.autograd.grad(distances, given, upstream.to(distances.dtype))
        return [each.double() for each in (distances.detach(), *gradients)]

    results = evaluated("auto", dtype), evaluated("reference", dtype), evaluated("reference", torch.float64)
    for got, eager, exact in zip(*results, strict=True):
        assert (got - exact).norm() <= 2 * (eager - exact).norm() + GRADIENT_ULPS[dtype] * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("form", ["softmax", "shares", "margin"])
def test_triplet_loss(take_route, random_triplets, form, dtype):
    take_route("places" if form == "shares" else "matrix")
    x, triplets, weights = torch.randn(2, 30, 24).to(dtype), random_triplets(2, 70, rows=30), torch.rand(70)
    how = {"form": "margin" if form == "margin" else "softmax", "metric": "correlation", "weights": weights}
    if form == "shares":
        how["targets"] = torch.rand(2, 70, 3).softmax(-1)
    assert_parity_of(lambda x, backend: triplet_loss(x, triplets, backend=backend, reduction="none", **how), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("method", ["pearson", "cosine"])
def test_rsa_correlation(method, dtype):
    x, target, weights = torch.randn(2, 40, 24).to(dtype), torch.rand(40, 40), torch.rand(2, 40, 40)
    other = torch.randn(2, 40, 5)
    for given in ({"target": target, "mask": target > 0.2}, {"target_embeddings": other, "target_metric": "dot"}):
        assert_parity_of(
            lambda x, backend, given=given: rsa_correlation(
                x, weights=weights, metric="euclidean", method=method, backend=backend, **given
            ),
            x,
        )


def assert_parity_of(function, x):
    """Compare the values of every set and the gradient of their weighted sum."""
    results = []
    for backend, dtype in (("auto", x.dtype), ("reference", x.dtype), ("reference", torch.float64)):
        given = x.to(dtype).requires_grad_()
        values = function(given, backend)
        (gradient,) = torch.autograd.grad(values, given, torch.linspace(1, 2, len(x), dtype=values.dtype))
        results.append((values.detach().double(), gradient.double()))
    (got, got_by), (eager, eager_by), (exact, exact_by) = results
    assert (got - exact).norm() <= 2 * (eager - exact).norm() + ULPS * exact.abs().clamp_min(1.0).norm()
    allowed = 2 * (eager_by - exact_by).norm() + GRADIENT_ULPS[x.dtype] * exact_by.norm()
    assert (got_by - exact_by).norm() <= allowed


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("route", ["matrix", "places"])
def test_same_bits_every_time(take_route, random_triplets, route, dtype):
    take_route(route)
    x, triplets, target = torch.randn(50, 70).to(dtype), random_triplets(500, rows=50), torch.rand(50, 50)

    def run():
        given = x.clone().requires_grad_()
        terms = hybrid_loss(given, triplets, target, return_terms=True, backend="auto")
        distances = pairwise_distance(given, backend="auto")
        return *terms, *torch.autograd.grad(terms.loss, given), distances, *torch.autograd.grad(distances.sum(), given)

    for one, two in zip(run(), run(), strict=True):
        assert torch.equal(one, two)
