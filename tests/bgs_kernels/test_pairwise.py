"""Distances against SciPy's, their derivatives, and the points where they have none."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from bgs_kernels import pairwise_distance

OP = "pairwise_distance"
METRICS = ("cosine", "correlation", "euclidean", "sqeuclidean", "dot")


def expected(x: torch.Tensor, y: torch.Tensor, metric: str) -> np.ndarray:
    x, y = x.double().cpu().numpy(), y.double().cpu().numpy()
    return -x @ y.T if metric == "dot" else cdist(x, y, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("rows", "others", "columns"), [(1, 1, 2), (2, 3, 17), (17, 5, 64), (129, 250, 200)])
def test_equals_scipy(backend, dtype, tolerance, metric, rows, others, columns):
    x, y = torch.randn(rows, columns).to(dtype), torch.randn(others, columns).to(dtype)
    for other in (None, y):
        right = expected(x, x if other is None else other, metric)
        got = pairwise_distance(x, other, metric=metric, backend=backend)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        if metric == "euclidean" and other is None:  # the root magnifies what is left of a zero
            np.fill_diagonal(right, 0)
        np.testing.assert_allclose(got.cpu(), right, rtol=tolerance, atol=tolerance * max(1.0, abs(right).max()))


@pytest.mark.parametrize("metric", METRICS)
def test_leading_dimensions_and_strides(backend, metric):
    x, y = torch.randn(2, 6, 3, 5).permute(1, 0, 3, 2), torch.randn(6, 2, 4, 3)
    got = pairwise_distance(x, y, metric=metric, backend=backend)
    assert got.shape == (6, 2, 5, 4)
    alone = pairwise_distance(x[4, 1].contiguous(), y[4, 1], metric=metric, backend=backend)
    torch.testing.assert_close(got[4, 1], alone)


@pytest.mark.parametrize("metric", METRICS)
def test_no_rows(backend, metric):
    assert pairwise_distance(torch.empty(0, 3), torch.randn(2, 3), metric=metric, backend=backend).shape == (0, 2)


@pytest.mark.parametrize("metric", METRICS)
def test_derivatives(metric):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def between(x, y):
        return pairwise_distance(x, y, metric=metric, backend="reference")

    def within(x):
        return pairwise_distance(x, metric=metric, backend="reference").triu(1)

    assert torch.autograd.gradcheck(between, (x, y))
    assert torch.autograd.gradgradcheck(between, (x, y))
    assert torch.autograd.gradcheck(within, (x,))
    assert torch.autograd.gradgradcheck(within, (x,))


@pytest.mark.parametrize(("metric", "row"), [("cosine", 0.0), ("correlation", 0.0), ("correlation", 0.1)])
def test_row_without_direction_is_at_distance_one_without_gradient(backend, dtype, metric, row):
    x = torch.randn(5, 7).to(dtype)
    x[2] = row
    x.requires_grad_()
    distances = pairwise_distance(x, metric=metric, backend=backend)
    assert (torch.cat((distances[2], distances[:, 2])) - 1).abs().max() < 4 * torch.finfo(distances.dtype).eps
    distances.square().sum().backward()
    assert torch.equal(x.grad[2], torch.zeros(7, dtype=dtype))
    assert x.grad[3].isfinite().all() and x.grad[3].any()


def test_row_that_is_constant_up_to_rounding_has_no_direction(backend):
    x = torch.randn(5, 64)
    x[2] = 0.1
    x[2, ::3] = torch.nextafter(x[2, 0], torch.tensor(1.0))
    assert (pairwise_distance(x, metric="correlation", backend=backend)[2] - 1).abs().max() < 1e-6


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_equal_rows_are_at_euclidean_distance_zero_without_gradient(backend, dtype, offset):
    x = (torch.randn(1, 300) + offset).expand(2, 300).to(dtype).requires_grad_()
    others = (torch.randn(3, 300) + offset).to(dtype)
    distances = pairwise_distance(torch.cat((x, others)), metric="euclidean", backend=backend)
    assert torch.equal(distances[:2, :2].detach(), torch.zeros(2, 2, dtype=distances.dtype))
    assert (distances[:2, 2:] > 1).all()
    distances[0, 1].backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "dot"])
@pytest.mark.parametrize("columns", [3, 128, 768])
def test_collapsed_rows_do_not_differ_at_all(backend, dtype, metric, columns):
    x = torch.randn(columns).relu().add(0.01).expand(129, columns).to(dtype)
    assert not pairwise_distance(x, metric=metric, backend=backend).any()


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25, 1e38])
def test_scale_of_a_row_does_not_matter(backend, metric, scale):
    x = torch.rand(4, 6)
    scaled = torch.cat((x[:2] * scale, x[2:]))
    got = pairwise_distance(scaled, metric=metric, backend=backend)
    torch.testing.assert_close(got, pairwise_distance(x, metric=metric, backend=backend), rtol=1e-5, atol=1e-6)


def test_nearly_parallel_rows_keep_their_precision(backend):
    x = torch.randn(50, 128) * 1e-3 + 1
    right = expected(x, x, "cosine")
    got = pairwise_distance(x, metric="cosine", backend=backend).double().cpu().numpy()
    above = np.triu_indices(50, 1)
    assert (abs(got - right)[above] / right[above]).max() < 1e-3  # 1 - cos, term by term, is off by more than 10 %


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_row_that_is_not_finite_is_at_distance_nan(backend, metric, value):
    x = torch.randn(5, 4)
    x[1, 2] = value
    bad = torch.zeros(5, 5, dtype=torch.bool)
    bad[1] = bad[:, 1] = True
    got = pairwise_distance(x, metric=metric, backend=backend)
    assert torch.equal(got.isnan(), bad)
    rest = [0, 2, 3, 4]
    alone = pairwise_distance(x[rest], metric=metric, backend=backend)
    torch.testing.assert_close(got[rest][:, rest], alone)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "dot"])
def test_distance_that_overflows_is_not_a_number_that_fits(backend, metric):
    x = torch.tensor([[-1e25], [1e25]])
    assert not pairwise_distance(x, metric=metric, backend=backend)[0, 1].isfinite()


def test_autocast_changes_nothing(backend):
    x = torch.randn(9, 33)
    with torch.autocast(x.device.type, torch.bfloat16):
        under = pairwise_distance(x, backend=backend)
    assert torch.equal(under, pairwise_distance(x, backend=backend))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(x=[[1.0]]), "x: expected a torch.Tensor, got list"),
        (dict(x=torch.ones(3, 2, dtype=torch.int64)), "x: expected a floating-point dtype, got int64"),
        (dict(x=torch.ones(3)), "x: expected shape (..., N, D) with D >= 1, got (3,)"),
        (dict(x=torch.ones(3, 0)), "x: expected shape (..., N, D) with D >= 1, got (3, 0)"),
        (
            dict(x=torch.ones(3, 2), y=torch.ones(3, 4)),
            "y: expected shape (M, 2) for x of (3, 2), got (3, 4)",
        ),
        (
            dict(x=torch.ones(5, 3, 2), y=torch.ones(4, 3, 2)),
            "y: expected shape (5, M, 2) for x of (5, 3, 2), got (4, 3, 2)",
        ),
        (
            dict(x=torch.ones(3, 2), y=torch.ones(3, 2, dtype=torch.float64)),
            "y: expected torch.float32 on cpu, those of x, got torch.float64 on cpu",
        ),
        (
            dict(x=torch.ones(3, 2), metric="manhattan"),
            "metric: expected one of 'cosine', 'correlation', 'euclidean', 'sqeuclidean', 'dot', got 'manhattan'",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises((TypeError, ValueError)) as raised:
        pairwise_distance(**arguments)
    assert str(raised.value) == message
