"""The kernels of every backend as operators of torch: what ``torch.library`` asks of one, compilation, derivatives, and
CUDA graphs."""

import importlib

import pytest
import torch

from bgs_kernels import HybridLoss, TripletIndex, available_backends, hybrid_loss, pairwise_distance, rsa_correlation
from bgs_kernels import triplet_loss as loss_of_triplets
from bgs_kernels.triplet.index import build_places

OP = "hybrid_loss"
WITHOUT = ("reference",)

METRICS = ("cosine", "correlation", "euclidean", "sqeuclidean", "dot")
NAN = float("nan")

only_triton = pytest.mark.parametrize(
    "backend",
    [pytest.param("triton", marks=pytest.mark.skipif("triton" not in available_backends(OP), reason="no Triton here"))],
)
only_native = pytest.mark.parametrize(
    "backend",
    [pytest.param("native", marks=pytest.mark.skipif("native" not in available_backends(OP), reason="not built"))],
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def judged(random_triplets):
    """Make embeddings that require a gradient, triplets and a target with holes: (B,) sets, or one without that
    dimension."""

    def make(*sets, rows=20, columns=8, count=30, dtype=torch.float32):
        target = torch.rand(*sets, rows, rows)
        target[torch.rand(*sets, rows, rows) < 0.2] = NAN
        x = torch.randn(*sets, rows, columns).to(dtype).requires_grad_()
        return x, random_triplets(*sets, count, rows=rows), target

    return make


@pytest.fixture
def take_route(monkeypatch, backend):
    """Send the triplets' gradient through an N x N matrix or through the places of rows, whatever the sizes."""

    def take(route):
        if backend == "triton":
            launch = importlib.import_module("bgs_kernels.hybrid_loss.launch")
            monkeypatch.setattr(launch, "MATRIX_ENTRIES_PER_TRIPLET", 10**9 if route == "matrix" else 0)
        elif route == "places":
            monkeypatch.setattr(importlib.import_module("bgs_kernels.hybrid_loss.native"), "SMALL_ROWS", 0)

    return take


@pytest.fixture
def loss_of(backend):
    """The loss on the backend of the test."""
    return lambda x, triplets, target, **how: hybrid_loss(x, triplets, target, backend=backend, **how)


NUMBERS = (0.7, 0.3, "softmax", 0.5, 0.2)


def optional_arguments(name, sets=2, rows=5, count=4):
    """Give the tensors between triplets and alpha, of those that a name asks for."""
    given = dict.fromkeys(
        (
            "target",
            "target_embeddings",
            "mask",
            "weights",
            "triplet_weights",
            "triplet_targets",
            "triplet_places",
            "triplet_starts",
            "lengths",
        )
    )
    if name != "rows":
        given["target"] = torch.rand(sets, rows, rows)
    else:
        given["target_embeddings"] = torch.randn(sets, rows, 3)
    if name in ("all", "rows"):
        given["mask"] = torch.rand(sets, rows, rows) < 0.9
        given["weights"] = torch.rand(sets, rows, rows)
        given["triplet_weights"] = torch.rand(sets, count)
        given["triplet_targets"] = torch.rand(sets, count, 3).softmax(-1)
        given["lengths"] = torch.tensor([rows, rows - 1])
    return given


@pytest.mark.parametrize("route", ["matrix", "places"])
@pytest.mark.parametrize("name", ["target", "all", "rows", "index", "no gradient", "half"])
@only_triton
def test_hybrid_loss_is_a_sound_operator(take_route, route, name, backend):
    fused = importlib.import_module("bgs_kernels.hybrid_loss.fused")
    take_route(route)
    dtype = torch.bfloat16 if name == "half" else torch.float32
    x = torch.randn(2, 5, 3).to(dtype).requires_grad_(name != "no gradient")
    triplets = torch.tensor([[0, 1, 2], [3, 2, 1], [2, 0, 3], [1, 3, 0]]).expand(2, 4, 3)
    given = optional_arguments(name)
    if name == "index":
        given["triplet_places"], given["triplet_starts"] = build_places(triplets, 5)
    words = ("cosine", "euclidean", "pearson")
    arguments = (x, triplets, *given.values(), *NUMBERS, *words, name != "no gradient")
    torch.library.opcheck(fused.hybrid_loss_forward, arguments)
    if name == "no gradient":
        return
    with torch.no_grad():
        _, _, buffer, by_distance = fused.hybrid_loss_forward(*arguments)
    assert by_distance.dtype == (torch.int64 if route == "matrix" else torch.float32)
    names = ("target", "target_embeddings", "mask", "weights", "triplet_places", "triplet_starts", "lengths")
    saved = (buffer, by_distance, x.detach(), triplets, *(given[each] for each in names))
    torch.library.opcheck(fused.hybrid_loss_backward, (torch.rand(2), *saved, *NUMBERS, *words))


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("others", [None, 4])
@only_triton
def test_pairwise_distance_is_a_sound_operator(metric, others, backend):
    pairwise_fused = importlib.import_module("bgs_kernels.pairwise.fused")
    x = torch.randn(2, 5, 3, requires_grad=True)
    y = None if others is None else torch.randn(2, others, 3, requires_grad=True)
    torch.library.opcheck(pairwise_fused.pairwise_distance_forward, (x, y, metric))
    with torch.no_grad():
        distances, x_stats, y_stats, origin = pairwise_fused.pairwise_distance_forward(x, y, metric)
    x = x.detach()
    of_y = (x, x_stats) if y is None else (y.detach(), y_stats)
    upstream = torch.rand(2, others or 5, 5).mT
    torch.library.opcheck(
        pairwise_fused.pairwise_distance_backward,
        (upstream, distances, x, x_stats, *of_y, origin, metric, y is None),
    )


@only_native
@pytest.mark.parametrize("name", ["target", "all", "rows", "no gradient", "half"])
def test_native_hybrid_loss_is_a_sound_operator(name, backend):
    native = importlib.import_module("bgs_kernels.hybrid_loss.native")
    dtype = torch.bfloat16 if name == "half" else torch.float32
    x = torch.randn(2, 5, 3).to(dtype).requires_grad_(name != "no gradient")
    triplets = torch.tensor([[0, 1, 2], [3, 2, 1], [2, 0, 3], [1, 3, 0]]).expand(2, 4, 3)
    given = optional_arguments(name)
    del given["triplet_places"], given["triplet_starts"]
    words = ("cosine", "euclidean", "pearson")
    torch.library.opcheck(
        native.native_hybrid_loss, (x, triplets, *given.values(), *NUMBERS, *words, name != "no gradient")
    )
    torch.library.opcheck(native.native_scaled_gradient, (torch.rand(2), torch.randn(2, 5, 3), x.detach()))


@only_native
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("others", [None, 4])
def test_native_pairwise_distance_is_a_sound_operator(metric, others, backend):
    native = importlib.import_module("bgs_kernels.pairwise.native")
    x = torch.randn(2, 5, 3, requires_grad=True)
    y = None if others is None else torch.randn(2, others, 3, requires_grad=True)
    torch.library.opcheck(native.native_pairwise_distance, (x, y, metric))
    x, y = x.detach(), None if y is None else y.detach()
    distances = native.native_pairwise_distance(x, y, metric)
    upstream = torch.rand(2, others or 5, 5).mT
    torch.library.opcheck(native.native_pairwise_distance_backward, (upstream, distances, x, y, metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["softmax", "margin"])
def test_gradient_is_the_slope_of_the_kernels_own_values(take_route, judged, metric, form, loss_of):
    """Steps of 1e-2 leave 1e-5 of float32's rounding and 1e-4 of curvature; any wrong term is of the order of 1e-1."""
    take_route("matrix" if form == "softmax" else "places")
    x, triplets, target = judged(2, rows=6, columns=4, count=12)

    def loss(x):
        return loss_of(x, triplets, target, triplet=form, metric=metric, margin=3.0, reduction="none")

    assert torch.autograd.gradcheck(loss, (x,), eps=1e-2, atol=2e-3, rtol=2e-3, fast_mode=True)


@pytest.mark.parametrize("metric", METRICS)
def test_gradient_of_distances_is_their_slope(metric, backend):
    x, y = torch.randn(4, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)

    def between(x, y):
        return pairwise_distance(x, y, metric=metric, backend=backend)

    assert torch.autograd.gradcheck(between, (x, y), eps=1e-2, atol=5e-3, rtol=5e-3, fast_mode=True)


def calls(judged, loss_of, backend):
    """The ops as functions of embeddings and what else a compiled function is given."""
    x, triplets, target = judged(2)
    module = HybridLoss(backend=backend, metric="euclidean")
    index, other = TripletIndex(triplets, 20), torch.randn(2, 20, 8)
    return {
        "loss": (lambda x, t: loss_of(x, t, target), x, triplets),
        "loss of an index": (lambda x, t: loss_of(x, t, target), x, index),
        "index made inside": (lambda x, t: loss_of(x, TripletIndex(t, 20), target), x, triplets),
        "module": (lambda x, t: module(x, t, target, mask=target > 0.1), x, index),
        "triplets": (lambda x, t: loss_of_triplets(x, t, form="margin", backend=backend), x, triplets),
        "correlation": (lambda x, t: rsa_correlation(x, target_embeddings=t, backend=backend).sum(), x, other),
        "distances": (lambda x, t: pairwise_distance(x, t, metric="dot", backend=backend).square().sum(), x, other),
        "twice": (lambda x, t: loss_of(x, t, target) + loss_of(2 * x, t, target, metric="dot"), x, triplets),
    }  # fmt: skip


NAMES = (
    "loss",
    "loss of an index",
    "index made inside",
    "module",
    "triplets",
    "correlation",
    "distances",
    "twice",
)


@pytest.mark.parametrize("route", ["matrix", "places"])
@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_graph_breaks(take_route, judged, name, route, loss_of, backend):
    take_route(route)
    function, x, other = calls(judged, loss_of, backend)[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got, right = compiled(x, other), function(x, other)
    assert torch.equal(got, right)
    assert torch.equal(*(torch.autograd.grad(each, x)[0] for each in (got, right)))
    with torch.no_grad():
        assert torch.equal(compiled(x, other), right)


def test_compiles_with_the_default_compiler(judged, loss_of, backend):
    function, x, other = calls(judged, loss_of, backend)["module"]
    compiled = torch.compile(function, fullgraph=True)
    got, right = compiled(x, other), function(x, other)
    torch.testing.assert_close(got, right)
    torch.testing.assert_close(*(torch.autograd.grad(each, x)[0] for each in (got, right)))


@pytest.mark.parametrize("route", ["matrix", "places"])
def test_used_twice_in_one_graph(take_route, judged, route, loss_of):
    take_route(route)
    x, triplets, target = judged()
    (one,) = torch.autograd.grad(loss_of(x, triplets, target), x)
    (other,) = torch.autograd.grad(loss_of(x, triplets, target, metric="euclidean"), x)
    both = loss_of(x, triplets, target) + loss_of(x, triplets, target, metric="euclidean")
    torch.testing.assert_close(torch.autograd.grad(both, x)[0], one + other)


def test_gradient_of_a_graph_that_is_kept(judged, loss_of):
    x, triplets, target = judged()
    loss = loss_of(x, triplets, target)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("route", ["matrix", "places"])
@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "detached", "wanted"])
@only_triton
def test_backward_buffers_are_made_only_for_a_backward(monkeypatch, take_route, judged, how, route, loss_of, backend):
    fused = importlib.import_module("bgs_kernels.hybrid_loss.fused")
    launch = importlib.import_module("bgs_kernels.hybrid_loss.launch")
    take_route(route)
    x, triplets, target = judged()
    made = []

    def watched(*arguments, **options):
        results = launch.launch_forward(*arguments, **options)
        made.append(results[3])
        return results

    monkeypatch.setattr(fused, "launch_forward", watched)
    right = loss_of(x, triplets, target)
    with {"no_grad": torch.no_grad(), "inference_mode": torch.inference_mode()}.get(how, torch.enable_grad()):
        got = loss_of(x.detach() if how == "detached" else x, triplets, target)
    assert got.requires_grad == (how == "wanted")
    assert made[0].numel() == (20 * 20 if route == "matrix" else 30 * 3)
    assert made[1].numel() == (made[0].numel() if how == "wanted" else 0)
    assert torch.equal(got, right)


@only_triton
def test_backward_of_distances_runs_where_it_is_wanted(monkeypatch, backend):
    pairwise_fused = importlib.import_module("bgs_kernels.pairwise.fused")
    runs = []
    backward = pairwise_fused.pairwise_distance_backward
    monkeypatch.setattr(
        pairwise_fused, "pairwise_distance_backward", lambda *given: runs.append(given[2]) or backward(*given)
    )
    x, y = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    pairwise_distance(x, y.requires_grad_(), backend=backend).sum().backward()
    assert len(runs) == 1 and torch.equal(runs[0], y) and x.grad is None and y.grad.shape == y.shape
    pairwise_distance(x.requires_grad_(), y, backend=backend).sum().backward()
    assert len(runs) == 3


def test_no_second_derivative(judged, loss_of, backend):
    x, triplets, target = judged()
    for value in (loss_of(x, triplets, target), pairwise_distance(x, backend=backend).square().sum()):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        with pytest.raises(RuntimeError, match="pass backend='reference' to differentiate twice"):
            gradient.sum().backward()


def test_transforms_of_functions_are_refused_and_not_taken_for_zero(judged, backend):
    x, triplets, target = judged()
    x = x.detach()

    def loss(x, backend=backend):
        return hybrid_loss(x, triplets, target, backend=backend)

    def distance(x, backend=backend):
        return pairwise_distance(x, backend=backend).sum()

    def tangent(function, **how):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            return torch.autograd.forward_ad.unpack_dual(function(dual, **how)).tangent

    for function in (loss, distance):
        transforms = (
            lambda function=function, **how: torch.func.grad(lambda x: function(x, **how))(x),
            lambda function=function, **how: torch.func.jvp(lambda x: function(x, **how), (x,), (x,))[1],
            lambda function=function, **how: torch.func.vmap(lambda x: function(x, **how))(x[None]),
            lambda function=function, **how: tangent(function, **how),
        )
        for transform in transforms:
            with pytest.raises(ValueError, match="need backend='reference'"):
                transform()
            torch.testing.assert_close(transform(backend="auto"), transform(backend="reference"))


def test_autocast_changes_nothing(judged, loss_of, backend):
    x, triplets, target = judged(columns=64)
    right = loss_of(x, triplets, target), pairwise_distance(x, backend=backend)
    with torch.autocast(x.device.type, torch.bfloat16):
        under = loss_of(x, triplets, target), pairwise_distance(x, backend=backend)
    assert torch.equal(under[0], right[0]) and torch.equal(under[1], right[1])
    assert torch.equal(*(torch.autograd.grad(each, x)[0] for each in (under[0], right[0])))


@pytest.mark.parametrize("route", ["matrix", "places"])
def test_upstream_gradients_of_any_stride(take_route, judged, route, loss_of):
    take_route(route)
    x, triplets, target = judged(3)
    losses = loss_of(x, triplets, target, reduction="none")

    def gradient(upstream):
        return torch.autograd.grad(losses, x, upstream, retain_graph=True)[0]

    each = gradient(torch.ones(3))
    assert torch.equal(gradient(torch.ones(()).expand(3)), each)
    spread = torch.tensor([2.0, NAN, -0.5, NAN, 0.0, NAN])[::2]
    assert spread.stride() == (2,)
    torch.testing.assert_close(gradient(spread), each * spread[:, None, None])
    alone = [torch.autograd.grad(loss_of(x[b], triplets[b], target[b]), x)[0][b] for b in range(3)]
    torch.testing.assert_close(each, torch.stack(alone))


def test_upstream_gradients_of_distances_of_any_stride(backend):
    x, y = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    distances = pairwise_distance(x, y, backend=backend)

    def gradients(upstream):
        return torch.autograd.grad(distances, (x, y), upstream, retain_graph=True)

    upstream = torch.randn(4, 5).mT
    for strided in (upstream, torch.randn(()).expand(5, 4), torch.randn(5, 1).expand(5, 4)):
        for one, two in zip(gradients(strided), gradients(strided.contiguous()), strict=True):
            assert torch.equal(one, two)


@needs_cuda
@pytest.mark.parametrize("route", ["matrix", "places"])
@only_triton
def test_waits_for_no_device(take_route, judged, route, loss_of, backend):
    take_route(route)
    x, triplets, target = judged(rows=64, columns=32, count=500)
    weights = torch.rand(500)

    def step():
        index = TripletIndex(triplets, 64)
        loss = loss_of(x, index, target, triplet_weights=weights) + loss_of(x, triplets, target)
        return torch.autograd.grad(loss + pairwise_distance(x, backend=backend).sum(), x)

    step()  # compiles, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("route", ["matrix", "places"])
@only_triton
def test_replays_from_a_cuda_graph(take_route, judged, route, loss_of, backend):
    take_route(route)
    x, triplets, target = judged(rows=250, columns=128, count=5000)

    def step():
        loss = loss_of(x, TripletIndex(triplets, 250), target)
        return loss, *torch.autograd.grad(loss, x)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn(250, 128))
        graph.replay()
        for got, right in zip(captured, step(), strict=True):
            assert torch.equal(got, right)


FREE_BYTES = 40 * 2**30
"""What the test of large targets needs for its target, its blocks in float64 and what torch keeps."""


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < FREE_BYTES, reason="needs 40 GiB of GPU memory"
)
@only_triton
def test_more_pairs_than_int32_counts(backend):
    """The correlation and the gradient of the last rows of a target of 2**31 entries and more, by blocks in float64."""
    rows, block = 46_400, 800
    assert rows * rows > 2**31
    x = torch.randn(rows, 16, requires_grad=True)
    target = torch.empty(rows, rows, dtype=torch.float16).uniform_()
    r = rsa_correlation(x, target, metric="sqeuclidean", backend=backend)
    (gradient,) = torch.autograd.grad(r, x)

    exact = x.detach().double()
    sums = torch.zeros(5, dtype=torch.float64)
    for first in range(0, rows, block):
        above = torch.arange(rows) > torch.arange(first, first + block)[:, None]
        d = torch.where(above, torch.cdist(exact[first : first + block], exact).square(), 0.0)
        h = torch.where(above, target[first : first + block].double(), 0.0)
        sums += torch.stack([each.sum() for each in (d, h, d * d, h * h, d * h)])
    pairs = rows * (rows - 1) / 2
    mean_d, mean_h = sums[0] / pairs, sums[1] / pairs
    dd, hh = sums[2] - pairs * mean_d**2, sums[3] - pairs * mean_h**2
    dh = sums[4] - pairs * mean_d * mean_h
    right = dh / (dd * hh).sqrt()
    assert abs(float(r) - float(right)) < 1e-6

    last = exact[-8:].requires_grad_()
    d = (last[:, None] - exact).square().sum(-1)
    h = target[:, -8:].T.double()  # above the diagonal the last columns, but for the pairs among the last rows
    h[:, -8:] = target[-8:, -8:].double().triu(1) + target[-8:, -8:].double().triu(1).T
    by_d = (h - mean_h) / (dd * hh).sqrt() - right / dd * (d.detach() - mean_d)
    by_d[:, -8:].fill_diagonal_(0.0)
    (by_hand,) = torch.autograd.grad((by_d * d).sum(), last)
    assert (gradient[-8:] - by_hand).norm() < 1e-3 * by_hand.norm()
