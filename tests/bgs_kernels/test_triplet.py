"""The triplet term against a loop over its formulas, its derivatives, ties, weights and padding."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from bgs_kernels import triplet_loss
from bgs_kernels.triplet import reference

OP = "triplet_loss"
METRICS = ("cosine", "correlation", "euclidean", "sqeuclidean", "dot")


def by_loop(embeddings, triplets, *, form, metric, temperature, margin, weights=None, targets=None):
    x = embeddings.double().cpu().numpy()
    distances = -x @ x.T if metric == "dot" else cdist(x, x, metric)
    total = total_weight = 0.0
    for row, (i, j, k) in enumerate(triplets.tolist()):
        ij, ik, jk = distances[i, j], distances[i, k], distances[j, k]
        if form == "margin":
            loss = max(0.0, ij - ik + margin)
        else:
            log_sum = math.log(sum(math.exp(-d / temperature) for d in (ij, ik, jk)))
            shares = (1.0, 0.0, 0.0) if targets is None else targets[row].tolist()
            loss = sum(q * (log_sum + d / temperature) for q, d in zip(shares, (ij, ik, jk), strict=True))
        weight = 1.0 if weights is None else float(weights[row])
        total += weight * loss
        total_weight += weight
    return total / total_weight


def settings(form="softmax", metric="cosine", temperature=0.7, margin=0.3):
    return dict(form=form, metric=metric, temperature=temperature, margin=margin)


@pytest.fixture(params=["matrix", "rows"])
def route(request, monkeypatch):
    """Both ways to the distances of triplets."""
    monkeypatch.setattr(reference, "MATRIX_ENTRIES_PER_TRIPLET", 10**9 if request.param == "matrix" else -1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["softmax", "margin"])
@pytest.mark.parametrize(("rows", "columns", "count"), [(3, 3, 1), (17, 64, 5), (40, 200, 500)])
def test_equals_loop(backend, dtype, tolerance, random_triplets, form, metric, rows, columns, count):
    x = (torch.randn(rows, columns) / columns**0.5).to(dtype)
    triplets = random_triplets(count, rows=rows)
    weights = torch.rand(count).double()
    how = settings(form, metric)
    for given in (None, weights):
        got = triplet_loss(x, triplets, weights=given, backend=backend, **how)
        assert got.shape == () and got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert float(got) == pytest.approx(by_loop(x, triplets, weights=given, **how), rel=tolerance, abs=tolerance)


def test_soft_targets_equal_loop(backend, dtype, tolerance, random_triplets):
    x, triplets = torch.randn(12, 5).to(dtype), random_triplets(30, rows=12)
    targets = torch.rand(30, 3, dtype=torch.float64).softmax(-1)
    targets[0] = torch.tensor([0.0, 1.0, 0.0])
    got = triplet_loss(x, triplets, targets=targets, backend=backend, **settings())
    assert float(got) == pytest.approx(by_loop(x, triplets, targets=targets, **settings()), rel=tolerance)


def test_certain_targets_are_hard_ones(backend, random_triplets):
    x, triplets = torch.randn(12, 5), random_triplets(30, rows=12)
    certain = torch.tensor([1.0, 0.0, 0.0]).expand(30, 3)
    soft = triplet_loss(x, triplets, targets=certain, backend=backend)
    torch.testing.assert_close(soft, triplet_loss(x, triplets, backend=backend))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["softmax", "margin"])
def test_both_routes_have_the_derivatives(route, random_triplets, form, metric):
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    triplets, weights = random_triplets(2, 8, rows=6), torch.rand(2, 8)
    targets = torch.rand(2, 8, 3).softmax(-1) if form == "softmax" else None

    def loss(x):
        return triplet_loss(
            x,
            triplets,
            weights=weights,
            targets=targets,
            reduction="none",
            backend="reference",
            **settings(form, metric),
        )

    assert torch.autograd.gradcheck(loss, (x,))
    if form == "softmax":
        assert torch.autograd.gradgradcheck(loss, (x,))


def test_routes_agree(monkeypatch, random_triplets):
    x, triplets = torch.randn(3, 30, 20, dtype=torch.float64), random_triplets(3, 50, rows=30)
    results = []
    for entries in (10**9, -1):
        monkeypatch.setattr(reference, "MATRIX_ENTRIES_PER_TRIPLET", entries)
        results.append(reference.triplet_distances(x, triplets, metric="euclidean"))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)


def test_sets_and_reductions(backend, random_triplets):
    x, triplets, weights = torch.randn(3, 9, 4), random_triplets(3, 11, rows=9), torch.rand(3, 11)
    alone = torch.stack([triplet_loss(x[b], triplets[b], weights=weights[b], backend=backend) for b in range(3)])

    def together(**how):
        return triplet_loss(x, triplets, weights=weights, backend=backend, **how)

    torch.testing.assert_close(together(reduction="none"), alone)
    torch.testing.assert_close(together(), alone.mean())
    torch.testing.assert_close(together(reduction="sum"), alone.sum())
    shared = triplet_loss(x, triplets[1], weights=weights[1], reduction="none", backend=backend)
    torch.testing.assert_close(shared[1], alone[1])
    assert triplet_loss(x[0], triplets[0], reduction="none", backend=backend).shape == ()


@pytest.mark.parametrize("dtype_of_triplets", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_integer_dtypes(backend, random_triplets, dtype_of_triplets):
    x, triplets = torch.randn(20, 4), random_triplets(30, rows=20)
    got = triplet_loss(x, triplets.to(dtype_of_triplets), backend=backend)
    assert torch.equal(got, triplet_loss(x, triplets, backend=backend))


def test_padding_counts_for_nothing(backend, random_triplets):
    x, triplets = torch.randn(2, 8, 4), random_triplets(2, 10, rows=8)
    triplets[1, 6:] = 0  # a repeated item is an error only where it counts
    weights = torch.ones(2, 10)
    weights[1, 6:] = 0
    got = triplet_loss(x, triplets, weights=weights, reduction="none", backend=backend)
    torch.testing.assert_close(got[1], triplet_loss(x[1], triplets[1, :6], backend=backend))


@pytest.mark.parametrize("form", ["softmax", "margin"])
@pytest.mark.parametrize("count", [0, 4])
def test_without_weight_the_loss_and_its_gradient_are_zero(backend, random_triplets, form, count):
    x = torch.randn(6, 4, requires_grad=True)
    loss = triplet_loss(x, random_triplets(count, rows=6), weights=torch.zeros(count), form=form, backend=backend)
    loss.backward()
    assert loss == 0 and torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("form", ["softmax", "margin"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_row_that_is_not_finite_makes_the_loss_nan_if_it_is_used(backend, route, form, metric, value):
    x = torch.randn(6, 4)
    x[3, 1] = value
    used, unused = torch.tensor([[0, 1, 2], [0, 1, 3]]), torch.tensor([[0, 1, 2], [0, 1, 4]])
    how = dict(form=form, metric=metric, backend=backend)
    assert triplet_loss(x, used, **how).isnan()
    assert triplet_loss(x, used, weights=torch.tensor([1.0, 0.0]), **how).isnan()
    assert triplet_loss(x, unused, **how).isfinite()


@pytest.mark.parametrize("form", ["softmax", "margin"])
@pytest.mark.parametrize(("metric", "rows"), [("dot", (1e20, 1e10, -1e20)), ("sqeuclidean", (0.0, 1.0, 1e30))])
def test_overflow_is_no_number(backend, route, form, metric, rows):
    """An odd one at an infinite distance would make a loss of 0."""
    x = torch.tensor(rows).unsqueeze(-1)
    assert triplet_loss(x, torch.tensor([[0, 1, 2]]), form=form, metric=metric, backend=backend).isnan()


def test_only_the_upper_triangle_is_looked_up():
    matrix = torch.arange(16.0).view(1, 4, 4)
    pairs = reference.pairs_of_triplets(matrix, torch.tensor([[[3, 0, 2], [0, 2, 1]]]))
    assert pairs.tolist() == [[[3.0, 11.0, 2.0], [2.0, 1.0, 6.0]]]


@pytest.mark.parametrize(
    ("distances", "accuracy"),
    [
        ((0.1, 0.2, 0.3), 1.0),
        ((0.2, 0.1, 0.3), 0.0),
        ((0.1, 0.1, 0.3), 1 / 2),
        ((0.1, 0.3, 0.1), 1 / 2),
        ((0.3, 0.1, 0.1), 0.0),
        ((0.1, 0.1, 0.1), 1 / 3),
    ],
)
def test_accuracy_shares_ties(distances, accuracy):
    got = reference.triplet_terms(torch.tensor([[distances]], dtype=torch.float64))[1]
    assert float(got) == pytest.approx(accuracy)


def test_accuracy_is_weighted_and_needs_weight():
    distances = torch.tensor([[[0.1, 0.2, 0.3], [0.2, 0.1, 0.3]]])
    assert float(reference.triplet_terms(distances, weights=torch.tensor([[3.0, 1.0]]))[1]) == 0.75
    assert reference.triplet_terms(distances, weights=torch.zeros(1, 2))[1].isnan()
    assert reference.triplet_terms(distances[:, :0])[1].isnan()
    assert reference.triplet_terms(distances * float("nan"))[1].isnan()


def test_hinge_is_flat_at_its_corner(backend):
    x = torch.eye(3, dtype=torch.float32).requires_grad_()
    triplet_loss(x, torch.tensor([[0, 1, 2]]), form="margin", margin=0.0, backend=backend).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


X = torch.ones(4, 2)
T = torch.tensor([[0, 1, 2], [1, 2, 3]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(triplets=[[0, 1, 2]]), "triplets: expected a torch.Tensor, got list"),
        (dict(triplets=T.float()), "triplets: expected an integer dtype, got float32"),
        (dict(triplets=T[:, :2]), "triplets: expected shape (T, 3), got (2, 2)"),
        (dict(triplets=T[None]), "triplets: expected shape (T, 3), got (1, 2, 3)"),
        (
            dict(embeddings=X.expand(5, 4, 2), triplets=T.expand(4, 2, 3)),
            "triplets: expected shape (5, T, 3) or (T, 3), got (4, 2, 3)",
        ),
        (
            dict(triplets=torch.tensor([[0, 1, 2], [1, 4, 2]])),
            "triplets: index 4 out of range for 4 embeddings (row 1)",
        ),
        (
            dict(triplets=torch.tensor([[0, 1, 2], [1, -1, 2]])),
            "triplets: index -1 out of range for 4 embeddings (row 1)",
        ),
        (
            dict(embeddings=X.expand(2, 4, 2), triplets=torch.tensor([[[0, 1, 2]], [[9, 1, 2]]])),
            "triplets: index 9 out of range for 4 embeddings (set 1, row 0)",
        ),
        (
            dict(triplets=torch.tensor([[0, 1, 9]]), weights=torch.zeros(1)),
            "triplets: index 9 out of range for 4 embeddings (row 0)",
        ),
        (
            dict(triplets=torch.tensor([[0, 1, 2], [1, 3, 1]])),
            "triplets: expected three different items, got (1, 3, 1) (row 1)",
        ),
        (dict(weights=torch.ones(3)), "weights: expected shape (2,), got (3,)"),
        (dict(weights=torch.tensor([1.0, -1.0])), "weights: expected finite values >= 0, got -1 at (1,)"),
        (dict(weights=torch.tensor([1.0, float("nan")])), "weights: expected finite values >= 0, got nan at (1,)"),
        (
            dict(weights=torch.ones(2, requires_grad=True)),
            "weights: is a constant here and gets no gradient, but requires one; pass it detached",
        ),
        (dict(targets=torch.ones(2, 2)), "targets: expected shape (2, 3), got (2, 2)"),
        (
            dict(targets=torch.ones(2, 3)),
            "targets: expected three shares that sum to 1, got a sum of 3 (row 0)",
        ),
        (
            dict(targets=torch.ones(2, 3) / 3, form="margin"),
            "targets: the margin form has no soft choices; use the softmax form",
        ),
        (dict(form="contrastive"), "form: expected one of 'softmax', 'margin', got 'contrastive'"),
        (dict(temperature=0.0), "temperature: expected a finite number > 0, got 0.0"),
        (dict(margin=-0.1), "margin: expected a finite number >= 0, got -0.1"),
        (dict(margin=float("nan")), "margin: expected a finite number >= 0, got nan"),
        (dict(reduction="max"), "reduction: expected one of 'mean', 'sum', 'none', got 'max'"),
        (
            dict(embeddings=torch.ones(2, 2, 4, 2)),
            "embeddings: expected shape (N, D) or (B, N, D) with B >= 1, got (2, 2, 4, 2)",
        ),
        (
            dict(embeddings=torch.ones(0, 4, 2)),
            "embeddings: expected shape (N, D) or (B, N, D) with B >= 1, got (0, 4, 2)",
        ),
        (
            dict(triplets=T.to("meta")),
            "triplets: expected device cpu, that of the embeddings, got meta",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises((TypeError, ValueError)) as raised:
        triplet_loss(**{"embeddings": X, "triplets": T, **arguments})
    assert str(raised.value) == message


def test_large_case_equals_vectorised_numpy(backend, random_triplets):
    x, triplets = torch.randn(250, 128), random_triplets(5000, rows=250)
    rows = x.double().cpu().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    i, j, k = triplets.cpu().numpy().T
    hinge = np.maximum(0, (1 - (unit[i] * unit[j]).sum(1)) - (1 - (unit[i] * unit[k]).sum(1)) + 0.2)
    assert float(triplet_loss(x, triplets, form="margin", backend=backend)) == pytest.approx(hinge.mean(), rel=1e-6)
