"""The hybrid loss against the published objective and its parts, with padding, degenerate input and its module."""

import inspect

import numpy as np
import pytest
import torch

from bgs_kernels import HybridLoss, HybridTerms, hybrid_loss, pairwise_distance, rsa_correlation, triplet_loss
from bgs_kernels.hybrid_loss.api import SETTINGS

OP = "hybrid_loss"
METRICS = ("cosine", "correlation", "euclidean", "sqeuclidean", "dot")
NAN = float("nan")


@pytest.fixture
def judged(random_triplets):
    """Make embeddings, triplets and a target with holes: (B,) sets, or one without that dimension."""

    def make(*sets, rows=20, columns=8, count=30, dtype=torch.float32):
        target = torch.rand(*sets, rows, rows)
        target[torch.rand(*sets, rows, rows) < 0.2] = NAN
        x = torch.randn(*sets, rows, columns, dtype=torch.float64).to(dtype)
        return x, random_triplets(*sets, count, rows=rows), target

    return make


def published(x, triplets, target, alpha, beta, margin):
    """The objective of arXiv 2510.01502 as its authors coded it, in loops."""
    n = len(x)
    unit = [row / np.sqrt(sum(value * value for value in row)) for row in x]
    d = [[1 - sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) for j in range(n)] for i in range(n)]
    triplet = sum(max(0.0, d[a][p] - d[a][n] + margin) for a, p, n in triplets) / len(triplets)
    observed = [(i, j) for i in range(n) for j in range(i + 1, n) if not np.isnan(target[i][j])]
    ours, theirs = [d[i][j] for i, j in observed], [target[i][j] for i, j in observed]
    our_mean, their_mean = sum(ours) / len(ours), sum(theirs) / len(theirs)
    covariance = sum((a - our_mean) * (b - their_mean) for a, b in zip(ours, theirs, strict=True))
    our_square = sum((a - our_mean) ** 2 for a in ours)
    their_square = sum((b - their_mean) ** 2 for b in theirs)
    return alpha * triplet + beta * -(covariance / np.sqrt(our_square * their_square))


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_published_objective(backend, dtype, judged, seed):
    torch.manual_seed(seed)
    x, triplets, target = judged(rows=40, columns=16, count=200, dtype=dtype)
    target = target.double()
    right = published(x.double().cpu().numpy(), triplets.tolist(), target.cpu().numpy(), 0.7, 0.3, 0.2)
    got = hybrid_loss(x, triplets, target, alpha=0.7, beta=0.3, triplet="margin", margin=0.2, backend=backend)
    assert abs(float(got) - right) < (1e-14 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["softmax", "margin"])
@pytest.mark.parametrize("rsa", ["pearson", "cosine"])
def test_is_the_sum_of_its_parts(backend, dtype, judged, metric, form, rsa):
    x, triplets, target = judged(3, dtype=dtype)
    triplet_weights, weights, mask = torch.rand(3, 30), torch.rand(3, 20, 20), torch.rand(3, 20, 20) < 0.9
    targets = torch.rand(3, 30, 3).softmax(-1) if form == "softmax" else None
    local = triplet_loss(
        x,
        triplets,
        form=form,
        metric=metric,
        temperature=0.5,
        margin=0.1,
        weights=triplet_weights,
        targets=targets,
        reduction="none",
        backend=backend,
    )
    r = rsa_correlation(x, target, mask=mask, weights=weights, metric=metric, method=rsa, backend=backend)
    terms = hybrid_loss(
        x,
        triplets,
        target,
        mask=mask,
        weights=weights,
        triplet_weights=triplet_weights,
        triplet_targets=targets,
        alpha=0.4,
        beta=0.6,
        triplet=form,
        temperature=0.5,
        margin=0.1,
        metric=metric,
        rsa=rsa,
        reduction="none",
        return_terms=True,
        backend=backend,
    )
    torch.testing.assert_close(terms.triplet, local)
    torch.testing.assert_close(terms.rsa, r)
    torch.testing.assert_close(terms.loss, 0.4 * local - 0.6 * r)


@pytest.mark.parametrize("metric", METRICS)
def test_accuracy_is_three_way(backend, judged, metric):
    x, triplets, target = judged(rows=50, count=300)
    d = pairwise_distance(x.double(), metric=metric)
    i, j, k = triplets.unbind(-1)
    right = ((d[i, j] < d[i, k]) & (d[i, j] < d[j, k])).double().mean()
    terms = hybrid_loss(x, triplets, target, metric=metric, return_terms=True, backend=backend)
    assert float(terms.accuracy) == pytest.approx(float(right), abs=1e-6)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "dot"])
@pytest.mark.parametrize("row", ["zero", "any"])
def test_collapsed_embeddings_score_chance(backend, dtype, judged, metric, row):
    x, triplets, target = judged(rows=129, columns=64, count=500, dtype=dtype)
    x = torch.zeros_like(x) if row == "zero" else x[:1].expand(x.shape)
    terms = hybrid_loss(x, triplets, target, metric=metric, return_terms=True, backend=backend)
    assert float(terms.accuracy) == pytest.approx(1 / 3, abs=1e-6)
    assert terms.rsa == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["softmax", "margin"])
@pytest.mark.parametrize("rsa", ["pearson", "cosine"])
def test_derivatives(random_triplets, metric, form, rsa):
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    triplets, target = random_triplets(2, 8, rows=6), torch.rand(2, 6, 6)
    target[0, 0, 2] = NAN
    some = dict(
        mask=torch.rand(2, 6, 6) < 0.9,
        weights=torch.rand(2, 6, 6),
        triplet_weights=torch.rand(2, 8),
        triplet_targets=torch.rand(2, 8, 3).softmax(-1) if form == "softmax" else None,
        lengths=torch.tensor([6, 5]),
    )
    triplets[1] %= 5
    some["triplet_weights"][1] *= (triplets[1].sort(-1).values.diff(dim=-1) > 0).all(-1)
    how = dict(triplet=form, metric=metric, rsa=rsa, reduction="none", backend="reference")

    def loss(x):
        return hybrid_loss(x, triplets, target, **some, **how)

    assert torch.autograd.gradcheck(loss, (x,))
    assert torch.autograd.gradgradcheck(loss, (x,), fast_mode=True)


def test_derivatives_with_target_embeddings(random_triplets):
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    triplets, other = random_triplets(8, rows=6), torch.randn(6, 4)
    assert torch.autograd.gradcheck(lambda x: hybrid_loss(x, triplets, target_embeddings=other), (x,))


def test_only_the_loss_carries_a_gradient(backend, judged):
    x, triplets, target = judged()
    terms = hybrid_loss(x.requires_grad_(), triplets, target, return_terms=True, backend=backend)
    assert isinstance(terms, HybridTerms)
    assert terms.loss.requires_grad
    assert not any(term.requires_grad for term in terms[1:])
    assert torch.equal(terms.loss, hybrid_loss(x, triplets, target, backend=backend))


def test_reductions_of_every_term(backend, judged):
    x, triplets, target = judged(3)

    def terms(reduction):
        return hybrid_loss(x, triplets, target, reduction=reduction, return_terms=True, backend=backend)

    for each, mean, total in zip(terms("none"), terms("mean"), terms("sum"), strict=True):
        assert each.shape == (3,)
        torch.testing.assert_close(mean, each.mean())
        torch.testing.assert_close(total, each.sum())
    for b, alone in enumerate(
        hybrid_loss(x[b], triplets[b], target[b], return_terms=True, backend=backend) for b in range(3)
    ):
        for each, single in zip(terms("none"), alone, strict=True):
            torch.testing.assert_close(each[b], single)


def test_one_target_for_all_sets(backend, judged):
    x, triplets, _ = judged(3)
    target = torch.rand(20, 20)
    shared = hybrid_loss(x, triplets, target, reduction="none", backend=backend)
    torch.testing.assert_close(
        shared, hybrid_loss(x, triplets, target.expand(3, 20, 20), reduction="none", backend=backend)
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rubbish", [NAN, float("inf"), 1e30])
def test_padding_rows_may_hold_anything_and_get_no_gradient(backend, judged, metric, rubbish):
    x, triplets, target = judged(2, rows=12, count=10)
    triplets[1] = torch.rand(10, 7).argsort(-1)[:, :3]
    other = torch.randn(2, 12, 5)
    lengths = torch.tensor([12, 7])
    padded, padded_other = x.clone(), other.clone()
    padded[1, 7:] = padded_other[1, 7:] = rubbish
    target[1, 7:] = target[1, :, 7:] = rubbish
    padded.requires_grad_()
    for given in (dict(target=target), dict(target_embeddings=padded_other)):
        padded.grad = None
        got = hybrid_loss(padded, triplets, lengths=lengths, metric=metric, reduction="none", backend=backend, **given)
        cut = x[1, :7].clone().requires_grad_()
        alone = hybrid_loss(
            cut,
            triplets[1],
            **(dict(target=target[1, :7, :7]) if "target" in given else dict(target_embeddings=other[1, :7])),
            metric=metric,
            backend=backend,
        )
        torch.testing.assert_close(got[1], alone)
        got.sum().backward()
        alone.backward()
        torch.testing.assert_close(padded.grad[1, :7], cut.grad, rtol=1e-4, atol=1e-6)
        assert torch.equal(padded.grad[1, 7:], torch.zeros(5, 8))


def test_padding_triplets_may_name_padding_rows(backend, judged):
    x, triplets, target = judged(2, rows=12, count=10)
    triplets[1] = torch.rand(10, 7).argsort(-1)[:, :3]
    triplets[1, 6:] = torch.tensor([9, 10, 11])
    x[1, 7:] = NAN
    weights = torch.ones(2, 10)
    weights[1, 6:] = 0
    lengths = torch.tensor([12, 7])
    got = hybrid_loss(x, triplets, target, triplet_weights=weights, lengths=lengths, reduction="none", backend=backend)
    alone = hybrid_loss(x[1, :7], triplets[1, :6], target[1, :7, :7], backend=backend)
    torch.testing.assert_close(got[1], alone)


def test_without_triplets_only_the_rsa_term_is_left(backend, judged):
    x, _, target = judged()
    x.requires_grad_()
    for none in (None, torch.empty(0, 3, dtype=torch.int64)):
        terms = hybrid_loss(x, none, target, return_terms=True, backend=backend)
        assert terms.triplet == 0 and terms.accuracy.isnan()
        torch.testing.assert_close(terms.loss, -0.3 * terms.rsa)
    x.grad = None
    hybrid_loss(x, None, alpha=0.7, beta=0.0, backend=backend).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_term_with_factor_zero_takes_no_part(backend, judged):
    x, triplets, target = judged()
    x[3] = NAN  # in no triplet below, but in a pair with every other row
    local = triplets[(triplets != 3).all(-1)]
    alone = hybrid_loss(x, local, beta=0.0, return_terms=True, backend=backend)
    assert alone.loss.isfinite() and alone.rsa.isnan()
    with_target = hybrid_loss(x, local, target, beta=0.0, return_terms=True, backend=backend)
    assert torch.equal(with_target.loss, alone.loss) and with_target.rsa.isnan()
    x, triplets, target = judged()
    both = hybrid_loss(x, triplets, target, alpha=0.0, return_terms=True, backend=backend)
    torch.testing.assert_close(both.loss, -0.3 * both.rsa)
    assert both.triplet > 0
    torch.testing.assert_close(
        hybrid_loss(x, triplets, target, beta=0.0, return_terms=True, backend=backend).rsa, both.rsa
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["softmax", "margin"])
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_row_that_is_not_finite_makes_the_loss_nan(backend, judged, metric, form, value):
    x, triplets, target = judged()
    x[int(triplets[0, 2]), 5] = value
    terms = hybrid_loss(x, triplets, target, metric=metric, triplet=form, return_terms=True, backend=backend)
    assert all(term.isnan() for term in terms)


def test_halves_are_computed_in_float32(backend, judged):
    x, triplets, target = judged(dtype=torch.bfloat16)
    half, single = x.clone().requires_grad_(), x.float().requires_grad_()
    got, right = (hybrid_loss(each, triplets, target, backend=backend) for each in (half, single))
    torch.testing.assert_close(got, right, rtol=1e-6, atol=1e-6)
    got.backward()
    right.backward()
    assert half.grad.dtype == torch.bfloat16
    rounding = (single.grad.bfloat16() - single.grad).norm()  # the least that an answer in bfloat16 is off by
    assert (half.grad - single.grad).norm() <= 2 * rounding


def test_autocast_changes_nothing(backend, judged):
    x, triplets, target = judged(columns=64)
    with torch.autocast(x.device.type, torch.bfloat16):
        under = hybrid_loss(x, triplets, target, backend=backend)
    assert torch.equal(under, hybrid_loss(x, triplets, target, backend=backend))


def test_same_bits_every_time(backend, judged):
    x, triplets, target = judged(rows=250, columns=128, count=5000)
    grads = []
    for _ in range(3):
        x.grad = None
        hybrid_loss(x.requires_grad_(), triplets, target, backend=backend).backward()
        grads.append(x.grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_strides_do_not_matter(backend, judged):
    x, triplets, target = judged(2)
    got = hybrid_loss(x.mT.contiguous().mT, triplets.mT.contiguous().mT, target.mT.contiguous().mT, backend=backend)
    torch.testing.assert_close(got, hybrid_loss(x, triplets, target, backend=backend))


def test_used_twice_in_one_graph(backend, judged):
    x, triplets, target = judged()
    x.requires_grad_()
    (once,) = torch.autograd.grad(hybrid_loss(x, triplets, target, backend=backend), x)
    twice = hybrid_loss(x, triplets, target, backend=backend) + hybrid_loss(x, triplets, target, backend=backend)
    torch.testing.assert_close(torch.autograd.grad(twice, x)[0], 2 * once)


def test_descent_recovers_the_target(backend):
    """Ten dozen steps from a random start bring the geometry of the target and the answers to its triplets."""
    truth = torch.randn(12, 3)
    target = pairwise_distance(truth)
    triplets = torch.combinations(torch.arange(12), 3)
    pairs = torch.stack([target[triplets[:, a], triplets[:, b]] for a, b in ((0, 1), (0, 2), (1, 2))])
    order = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 2, 0]])[pairs.argmin(0)]
    triplets = triplets.gather(1, order)
    x = torch.randn(12, 3, requires_grad=True)
    optimiser = torch.optim.Adam([x], lr=0.1)
    before = hybrid_loss(x, triplets, target, return_terms=True, backend=backend)
    for _ in range(120):
        optimiser.zero_grad()
        hybrid_loss(x, triplets, target, temperature=0.2, backend=backend).backward()
        optimiser.step()
    after = hybrid_loss(x, triplets, target, return_terms=True, backend=backend)
    assert before.rsa < 0.5 and after.rsa > 0.9 and after.accuracy > 0.9


def test_compiles_without_graph_breaks(judged):
    x, triplets, target = judged()
    x.requires_grad_()

    def loss(x, beta):
        return hybrid_loss(x, triplets, target, beta=beta)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for beta in (0.3, 0.4, 0.5):
        torch.testing.assert_close(compiled(x, beta), loss(x, beta))
    torch.testing.assert_close(torch.autograd.grad(compiled(x, 0.3), x), torch.autograd.grad(loss(x, 0.3), x))


def test_shapes_without_values(judged):
    x, triplets, target = (each.to("meta") for each in judged(3))
    terms = hybrid_loss(x, triplets, target, reduction="none", return_terms=True)
    assert [(term.shape, term.dtype, term.device.type) for term in terms] == [((3,), torch.float32, "meta")] * 4


def test_module_is_the_function(backend, judged):
    x, triplets, target = judged()
    module = HybridLoss(alpha=0.5, beta=0.1, triplet="margin", margin=0.4, metric="euclidean", backend=backend)

    def right(**how):
        return hybrid_loss(
            x, triplets, target, triplet="margin", margin=0.4, metric="euclidean", backend=backend, **how
        )

    assert torch.equal(module(x, triplets, target), right(alpha=0.5, beta=0.1))
    module.beta = 0.6
    assert torch.equal(module(x, triplets, target), right(alpha=0.5, beta=0.6))
    module.return_terms = True
    assert isinstance(module(x, triplets, target=target), HybridTerms)
    assert "beta=0.6" in repr(module) and "metric='euclidean'" in repr(module)
    assert not module.state_dict()


def test_module_takes_what_the_function_takes():
    function = inspect.signature(hybrid_loss).parameters
    settings = inspect.signature(HybridLoss).parameters
    tensors = [name for name in inspect.signature(HybridLoss.forward).parameters if name != "self"]
    assert [*tensors, *settings] == list(function)
    assert tuple(settings) == SETTINGS
    assert all(settings[name].default == function[name].default for name in settings)


X = torch.randn(4, 2)
T = torch.tensor([[0, 1, 2], [1, 2, 3]])
H = torch.rand(4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(target=None), "target: one of target and target_embeddings must be given unless beta is 0"),
        (dict(target_embeddings=X), "target: only one of target and target_embeddings may be given"),
        (dict(target=H[:3]), "target: expected shape (4, 4), got (3, 4)"),
        (dict(alpha=-1.0), "alpha: expected a finite number >= 0, got -1.0"),
        (dict(beta=float("inf")), "beta: expected a finite number >= 0, got inf"),
        (dict(beta="0.3"), "beta: expected a finite number >= 0, got '0.3'"),
        (dict(temperature=0), "temperature: expected a finite number > 0, got 0"),
        (dict(triplet="hinge"), "triplet: expected one of 'softmax', 'margin', got 'hinge'"),
        (dict(rsa="spearman"), "rsa: expected one of 'pearson', 'cosine', got 'spearman'"),
        (
            dict(target_metric="l2"),
            "target_metric: expected one of 'cosine', 'correlation', 'euclidean', 'sqeuclidean', 'dot', got 'l2'",
        ),
        (dict(reduction=None), "reduction: expected one of 'mean', 'sum', 'none', got None"),
        (dict(triplet_weights=torch.ones(3)), "triplet_weights: expected shape (2,), got (3,)"),
        (
            dict(triplets=None, triplet_weights=torch.ones(3)),
            "triplets: must be given with triplet_weights or triplet_targets",
        ),
        (
            dict(triplet_targets=torch.ones(2, 3) / 3, triplet="margin"),
            "triplet_targets: the margin form has no soft choices; use the softmax form",
        ),
        (
            dict(embeddings=torch.randn(250, 2), target=torch.rand(250, 250), triplets=torch.tensor([[0, 1, 250]])),
            "triplets: index 250 out of range for 250 embeddings (row 0)",
        ),
        (dict(lengths=torch.tensor([4])), "lengths: need embeddings (B, N, D), got (4, 2)"),
        (
            dict(embeddings=X.expand(2, 4, 2), lengths=torch.tensor([4, 4, 4])),
            "lengths: expected shape (2,), got (3,)",
        ),
        (
            dict(embeddings=X.expand(2, 4, 2), lengths=torch.tensor([4, 5])),
            "lengths: expected 0 to 4, got 5 (set 1)",
        ),
        (
            dict(embeddings=X.expand(2, 4, 2), lengths=torch.tensor([4.0, 4.0])),
            "lengths: expected an integer dtype, got float32",
        ),
        (
            dict(embeddings=X.expand(2, 4, 2), lengths=torch.tensor([4, 3])),
            "triplets: index 3 out of range for 3 embeddings (set 1, row 1)",
        ),
        (
            dict(backend="cuda"),
            "hybrid_loss: unknown backend 'cuda', expected one of auto, triton, native, flash, sdpa, reference",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises((TypeError, ValueError)) as raised:
        hybrid_loss(**{"embeddings": X, "triplets": T, "target": H, **arguments})
    assert str(raised.value) == message


@pytest.mark.parametrize("settings", [dict(metric="l1"), dict(beta=-1), dict(rsa="kendall"), dict(backend="fast")])
def test_module_checks_its_settings_at_once(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        HybridLoss(**settings)
