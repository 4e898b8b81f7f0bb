"""The RSA correlation against NumPy and SciPy over the observed pairs, its derivatives, and degenerate geometries."""

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from bgs_kernels import pairwise_distance, rsa_correlation

OP = "rsa_correlation"
METRICS = ("cosine", "correlation", "euclidean", "sqeuclidean", "dot")
RANKED = ("spearman", "tau-a", "tau-b")
METHODS = ("pearson", "cosine", *RANKED)
NAN = float("nan")


def by_numpy(distances, target, method, mask=None, weights=None):
    """Correlate over the upper triangle, leaving out what is NaN, masked or weighted with 0."""
    above = np.triu_indices(len(distances), 1)
    d, h = distances.double().cpu().numpy()[above], target.double().cpu().numpy()[above]
    w = np.ones_like(d) if weights is None else weights.double().cpu().numpy()[above]
    if mask is not None:
        w = w * mask.cpu().numpy()[above]
    d, h, w = d[keep := ~np.isnan(h) & (w > 0)], h[keep], w[keep]
    if method == "spearman":
        return spearmanr(d, h).statistic
    if method == "tau-b":
        return kendalltau(d, h).statistic
    if method == "tau-a":
        alike = np.sign(d[:, None] - d) * np.sign(h[:, None] - h)
        return alike.sum() / (len(d) * (len(d) - 1))
    if method == "pearson":
        d, h = d - np.average(d, weights=w), h - np.average(h, weights=w)
    return np.sum(w * d * h) / np.sqrt(np.sum(w * d * d) * np.sum(w * h * h))


def geometry(rows, *, holes=0.3):
    """A random target with NaN holes, a mask and weights with zeros; nothing below the diagonal means anything."""
    target = torch.rand(rows, rows, dtype=torch.float64)
    target[torch.rand(rows, rows) < holes] = NAN
    weights = torch.rand(rows, rows, dtype=torch.float64) * (torch.rand(rows, rows) < 0.8)
    return target, torch.rand(rows, rows) < 0.8, weights


@pytest.mark.parametrize(
    ("method", "rows"),
    # the definition of Kendall's tau grows with the fourth power of the rows
    [(method, rows) for method in METHODS for rows in (5, 64, 129) if rows < 129 or "tau" not in method],
)
@pytest.mark.parametrize("metric", METRICS)
def test_equals_numpy(backend, dtype, tolerance, method, metric, rows):
    x = torch.randn(rows, 20).to(dtype)
    target, mask, weights = geometry(rows)
    exact = pairwise_distance(x.double(), metric=metric, backend="reference")
    if method in RANKED:  # ranks jump where distances are within rounding of each other
        tolerance = max(tolerance, 1e-12 if dtype == torch.float64 else 1e-4)
    for some in ({}, {"mask": mask}, {"weights": weights}, {"mask": mask, "weights": weights}):
        got = rsa_correlation(x, target, metric=metric, method=method, backend=backend, **some)
        assert got.shape == () and got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert float(got) == pytest.approx(by_numpy(exact, target, method, **some), abs=2 * tolerance)


@pytest.mark.parametrize("method", RANKED)
def test_ties(backend, method):
    x = torch.randint(0, 3, (40, 2), dtype=torch.float64)
    target = torch.randint(0, 4, (40, 40)).double()
    target[torch.rand(40, 40) < 0.2] = NAN
    exact = pairwise_distance(x, metric="sqeuclidean", backend="reference").round()
    got = rsa_correlation(exact, target, metric="precomputed", method=method, backend=backend)
    assert abs(float(got) - by_numpy(exact, target, method)) < 1e-12


def test_kendall_takes_its_couples_in_parts(monkeypatch):
    monkeypatch.setattr("bgs_kernels.rsa.reference.COUPLES_AT_A_TIME", 1000)
    x, (target, mask, weights) = torch.randn(14, 3, dtype=torch.float64), geometry(14)
    got = rsa_correlation(x, target, mask=mask, weights=weights, method="tau-b", backend="reference")
    exact = pairwise_distance(x, backend="reference")
    assert abs(float(got) - by_numpy(exact, target, "tau-b", mask=mask, weights=weights)) < 1e-12


@pytest.fixture
def native():
    return pytest.importorskip("bgs_kernels._native", reason="the compiled module is not built")


@pytest.mark.parametrize("method", RANKED)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_many_pairs_on_any_number_of_threads(native, dtype, tied, method):
    """More pairs than one part of a sort, so that threads share them."""
    distances = torch.rand(450, 450, dtype=dtype)
    target = distances + torch.rand(450, 450)
    target[torch.rand(450, 450) < 0.1] = NAN
    if tied:
        distances, target = (distances * 50).round(), (target * 20).round()
    got = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        got.append(rsa_correlation(distances, target, metric="precomputed", method=method, backend="native"))
    torch.set_num_threads(before)
    assert torch.equal(got[0], got[1]) and torch.equal(got[0], got[2])
    if method != "tau-a":
        right = by_numpy(distances, target.to(dtype), method)
        assert abs(float(got[0]) - right) < (1e-12 if dtype == torch.float64 else 1e-7)
    elif not tied and dtype == torch.float64:  # without ties the two taus are one
        same = rsa_correlation(distances, target, metric="precomputed", method="tau-b", backend="native")
        torch.testing.assert_close(got[0], same)


@pytest.mark.parametrize("method", RANKED)
def test_strides_and_dtypes_of_targets(native, method):
    rows = 23
    distances = torch.rand(3, 2 * rows, 3 * rows, dtype=torch.float64)[:, ::2, ::3].mT
    target = torch.randint(0, 100, (rows, rows))
    mask, weights = torch.rand(3, rows, rows) < 0.8, torch.randint(0, 2, (rows, 2 * rows))[:, ::2]
    for some in (target, target % 2 == 0, target.bfloat16(), target.float().mT, target.double().expand(3, -1, -1)):
        both = [
            rsa_correlation(
                distances, some, mask=mask, weights=weights, metric="precomputed", method=method, backend=backend
            )
            for backend in ("native", "reference")
        ]
        torch.testing.assert_close(*both, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_perfect_agreement(backend, method):
    x = torch.randn(20, 5)
    distances = pairwise_distance(x)
    assert float(rsa_correlation(x, distances, method=method, backend=backend)) == pytest.approx(1, abs=1e-6)
    if method != "cosine":
        assert float(rsa_correlation(x, -distances, method=method, backend=backend)) == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_target_embeddings_are_their_distances(backend, metric):
    x, other = torch.randn(2, 15, 6), torch.randn(2, 15, 9)
    dense = rsa_correlation(x, pairwise_distance(other, metric=metric), metric="cosine", backend=backend)
    got = rsa_correlation(x, target_embeddings=other, metric="cosine", target_metric=metric, backend=backend)
    torch.testing.assert_close(got, dense)
    same = rsa_correlation(x, target_embeddings=other, metric=metric, backend=backend)
    torch.testing.assert_close(
        same, rsa_correlation(x, target_embeddings=other, metric=metric, target_metric=metric, backend=backend)
    )


@pytest.mark.parametrize("method", METHODS)
def test_precomputed_distances(backend, method):
    x = torch.randn(12, 5)
    target, mask, weights = geometry(12)
    distances = pairwise_distance(x)
    right = rsa_correlation(x, target, mask=mask, weights=weights, method=method, backend=backend)
    distances[~mask] = NAN  # a pair that is not observed is not used
    distances = distances.triu(1) + torch.full((12, 12), NAN).tril()
    got = rsa_correlation(
        distances, target, mask=mask, weights=weights, metric="precomputed", method=method, backend=backend
    )
    torch.testing.assert_close(got, right)


@pytest.mark.parametrize("method", METHODS)
def test_sets(backend, method):
    x, target = torch.randn(3, 10, 4), torch.rand(3, 10, 10)
    mask, weights = torch.rand(3, 10, 10) < 0.7, torch.rand(3, 10, 10)
    got = rsa_correlation(x, target, mask=mask, weights=weights, method=method, backend=backend)
    alone = [
        rsa_correlation(x[b], target[b], mask=mask[b], weights=weights[b], method=method, backend=backend)
        for b in range(3)
    ]
    torch.testing.assert_close(got, torch.stack(alone))
    shared = rsa_correlation(x, target[1], mask=mask[1], weights=weights[1], method=method, backend=backend)
    torch.testing.assert_close(shared[1], alone[1])


@pytest.mark.parametrize("method", METHODS)
def test_only_the_upper_triangle_is_read(backend, method):
    x, target = torch.randn(8, 4), torch.rand(8, 8)
    weights = torch.rand(8, 8)
    right = rsa_correlation(x, target, weights=weights, method=method, backend=backend)
    for rubbish in (NAN, float("inf"), -7.0):
        below = torch.full((8, 8), rubbish).tril()
        got = rsa_correlation(
            x, target.triu(1) + below, weights=weights.triu(1) + below, method=method, backend=backend
        )
        assert torch.equal(got, right)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("method", ["pearson", "cosine"])
def test_derivatives(metric, method):
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    target, mask, weights = torch.rand(2, 5, 5).double(), torch.rand(2, 5, 5) < 0.8, torch.rand(2, 5, 5)
    target[0, 0, 1] = NAN

    def correlation(x):
        return rsa_correlation(x, target, mask=mask, weights=weights, metric=metric, method=method, backend="reference")

    assert torch.autograd.gradcheck(correlation, (x,))
    assert torch.autograd.gradgradcheck(correlation, (x,))


def test_derivatives_of_precomputed_distances():
    distances = torch.rand(5, 5, dtype=torch.float64, requires_grad=True)
    target = torch.rand(5, 5)
    assert torch.autograd.gradcheck(lambda d: rsa_correlation(d, target, metric="precomputed"), (distances,))


def degenerate_cases(rows=129):
    x, target = torch.randn(rows, 64), torch.rand(rows, rows)
    one = torch.full((rows, rows), NAN)
    one[0, 1] = 0.5
    return {
        "all masked": (x, target, {"mask": torch.zeros(rows, rows, dtype=torch.bool)}),
        "all NaN": (x, torch.full_like(target, NAN), {}),
        "all weights zero": (x, target, {"weights": torch.zeros(rows, rows)}),
        "one pair": (x, one, {}),
        "constant target": (x, torch.full_like(target, 0.7), {}),
        "collapsed embeddings": (x[:1].expand(rows, 64), target, {}),
        "collapsed up to scale": (x[:1] * torch.rand(rows, 1).add(0.1), target, {}),
        "zero embeddings": (torch.zeros(rows, 64), target, {}),
        "one row": (x[:1], target[:1, :1], {}),
        "collapsed target embeddings": (x, None, {"target_embeddings": torch.randn(64).expand(rows, 64)}),
    }


@pytest.mark.parametrize(
    ("method", "case"),
    [
        (method, case)
        for method in METHODS
        for case in degenerate_cases()
        # the uncentred correlation subtracts no mean: a constant does not make it degenerate
        if method != "cosine" or case not in ("constant target", "zero embeddings")
    ],
)
def test_degenerate_geometries_correlate_zero_without_gradient(backend, dtype, case, method):
    x, target, some = degenerate_cases(17 if "tau" in method else 129)[case]
    x = x.to(dtype).requires_grad_(method not in RANKED)
    r = rsa_correlation(x, target, method=method, backend=backend, **some)
    assert r == 0
    if method not in RANKED:
        r.backward()
        assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("metric", METRICS)
def test_little_variance_is_not_none(backend, metric):
    """Embeddings that spread over a hundredth of their size still have a geometry."""
    x = torch.randn(30, 16, dtype=torch.float64) * 1e-2 + torch.randn(16)
    target = pairwise_distance(x, metric=metric)
    got = rsa_correlation(x.float(), target, metric=metric, backend=backend)
    assert float(got) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
def test_row_that_is_not_finite_makes_r_nan(backend, metric, method, value):
    x, target = torch.randn(6, 4), torch.rand(6, 6)
    x[2, 1] = value
    away = torch.ones(6, 6, dtype=torch.bool)
    away[2] = away[:, 2] = False
    for some in ({}, {"mask": away}, {"weights": away.float()}, {"mask": torch.zeros_like(away)}):
        assert rsa_correlation(x, target, metric=metric, method=method, backend=backend, **some).isnan()
    assert rsa_correlation(x, torch.ones(6, 6), metric=metric, method=method, backend=backend).isnan()


@pytest.mark.parametrize("method", METHODS)
def test_infinite_target_makes_r_nan_if_it_is_observed(backend, method):
    x, target = torch.randn(6, 4), torch.rand(6, 6)
    target[1, 2] = float("inf")
    observed = target.isfinite()
    assert rsa_correlation(x, target, method=method, backend=backend).isnan()
    assert rsa_correlation(x, target, mask=observed, method=method, backend=backend).isfinite()
    assert rsa_correlation(x, target, weights=observed.float(), method=method, backend=backend).isfinite()


def test_target_embedding_that_is_not_finite_can_be_masked(backend):
    x, other = torch.randn(6, 4), torch.randn(6, 4)
    other[2] = NAN
    known = torch.ones(6, 6, dtype=torch.bool)
    known[2] = known[:, 2] = False
    assert rsa_correlation(x, target_embeddings=other, backend=backend).isnan()
    rest = [0, 1, 3, 4, 5]
    got = rsa_correlation(x, target_embeddings=other, mask=known, backend=backend)
    torch.testing.assert_close(got, rsa_correlation(x[rest], target_embeddings=other[rest], backend=backend))


X = torch.ones(4, 2)
H = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(target=None), "target: one of target and target_embeddings must be given"),
        (dict(target_embeddings=X), "target: only one of target and target_embeddings may be given"),
        (dict(target=torch.ones(4, 3)), "target: expected shape (4, 4), got (4, 3)"),
        (dict(target=torch.ones(1, 4, 4)), "target: expected shape (4, 4), got (1, 4, 4)"),
        (dict(target=H.to(torch.complex64)), "target: expected a real dtype, got complex64"),
        (
            dict(target=H.clone().requires_grad_()),
            "target: is a constant here and gets no gradient, but requires one; pass it detached",
        ),
        (dict(target=None, target_embeddings=torch.ones(3, 2)), "target_embeddings: expected shape (4, E), got (3, 2)"),
        (
            dict(target=None, target_embeddings=torch.ones(4, 0)),
            "target_embeddings: expected at least one column, got (1, 4, 0)",
        ),
        (dict(mask=H), "mask: expected the bool dtype, got float32"),
        (dict(mask=H[:3] > 0), "mask: expected shape (4, 4), got (3, 4)"),
        (dict(weights=-H), "weights: expected finite values >= 0, got -1 at (0, 1)"),
        (dict(metric="l1"), "metric: expected one of 'cosine', 'correlation', 'euclidean', 'sqeuclidean', 'dot', "
                            "'precomputed', got 'l1'"),
        (dict(method="kendall"), "method: expected one of 'pearson', 'cosine', 'spearman', 'tau-a', 'tau-b', "
                                 "got 'kendall'"),
        (dict(metric="precomputed"), "embeddings: expected (N, N) or (B, N, N) distances, got (4, 2)"),
        (
            dict(embeddings=H, target=None, target_embeddings=X, metric="precomputed"),
            "target_metric: must be given for target_embeddings when the metric is 'precomputed'",
        ),
        (
            dict(embeddings=X.clone().requires_grad_(), method="spearman"),
            "method: 'spearman' has no gradient; pass embeddings.detach(), or call it under torch.no_grad()",
        ),
        (
            dict(embeddings=X.clone().requires_grad_(), method="tau-b"),
            "method: 'tau-b' has no gradient; pass embeddings.detach(), or call it under torch.no_grad()",
        ),
        (
            dict(embeddings=X.expand(2, 4, 2), target=torch.ones(3, 4, 4)),
            "target: expected shape (2, 4, 4) or (4, 4), got (3, 4, 4)",
        ),
    ],
)  # fmt: skip
def test_errors(arguments, message):
    with pytest.raises((TypeError, ValueError)) as raised:
        rsa_correlation(**{"embeddings": X, "target": H, **arguments})
    assert str(raised.value) == message
