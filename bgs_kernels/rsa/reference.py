"""The definition of the RSA correlation, in plain PyTorch: which pairs of rows are observed, and how strongly the
distances of two geometries agree over them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bgs_kernels.pairwise.reference import BOUNDED_METRICS, ROUNDING, compute_dtype, pairwise_distance
from bgs_kernels.rank.reference import fractional_rank

RANK_METHODS = ("spearman", "tau-a", "tau-b")
"""Methods that compare the order of distances alone: they have no gradient, and weights only select pairs."""

RSA_METHODS = ("pearson", "cosine")
"""The correlations that have a gradient."""

METHODS = (*RSA_METHODS, *RANK_METHODS)

PRECOMPUTED = "precomputed"
"""The metric that says that the embeddings are a distance matrix already."""

COUPLES_AT_A_TIME = 1 << 22
"""Couples of pairs that Kendall's tau compares at a time, so that memory does not grow with the square of the pairs."""


def rsa_correlation(
    embeddings: torch.Tensor,
    target: torch.Tensor | None = None,
    *,
    target_embeddings: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    metric: str = "cosine",
    target_metric: str = "cosine",
    method: str = "pearson",
) -> torch.Tensor:
    """Compute the agreement of every set's geometry with its target: ``correlate`` over the ``observed_pairs``.

    Args:
        embeddings: (B, N, D), any floating dtype; with the metric "precomputed" (B, N, N) distances, of which those of
            unobserved pairs are never used.
        target, target_embeddings, mask, weights, target_metric: as in ``observed_pairs``.
        metric: one of ``bgs_kernels.pairwise.reference.METRICS``, or "precomputed".
        method: as in ``correlate``.

    Returns:
        (B,) in the compute dtype.
    """
    dtype = compute_dtype(embeddings.dtype)
    target, weights = observed_pairs(
        target,
        target_embeddings=target_embeddings,
        mask=mask,
        weights=weights,
        target_metric=target_metric,
        dtype=dtype,
    )
    if metric == PRECOMPUTED:
        distances = torch.where(weights != 0, embeddings.to(dtype), 0.0)
    else:
        distances = pairwise_distance(embeddings, metric=metric)
    return correlate(
        distances,
        target,
        weights,
        method=method,
        bounded=metric in BOUNDED_METRICS,
        target_bounded=target_embeddings is not None and target_metric in BOUNDED_METRICS,
    )


def observed_pairs(
    target: torch.Tensor | None,
    *,
    target_embeddings: torch.Tensor | None,
    mask: torch.Tensor | None,
    weights: torch.Tensor | None,
    lengths: torch.Tensor | None = None,
    target_metric: str,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Say how far apart the target puts every pair of rows, and with what weight that pair was observed.

    A pair i < j is observed unless its target is NaN, its mask is False, its weight is 0 or one of its rows is padding.
    The values of unobserved pairs, of the diagonal and of the lower triangle are never used.

    Args:
        target: (B, N, N) dissimilarities, or None for the distances of ``target_embeddings``, whose NaN are not
            unobserved but errors, and come out as NaN.
        target_embeddings: (B, N, E).
        mask: (B, N, N) bool, True where observed.
        weights: (B, N, N) non-negative.
        lengths: (B,) number of rows of each set; the rows after them are padding.
        target_metric: the distance between target embeddings.
        dtype: the dtype to answer in.

    Returns:
        target (B, N, N) and weights (B, N, N), both zero where unobserved.
    """
    if target is None:
        assert target_embeddings is not None
        target = pairwise_distance(target_embeddings.to(dtype), metric=target_metric)
        observed = torch.ones_like(target, dtype=torch.bool)
    else:
        observed = ~target.isnan()
    rows = target.shape[-1]
    observed = observed.triu(1)
    if mask is not None:
        observed = observed & mask
    if lengths is not None:
        real = torch.arange(rows, device=target.device) < lengths.unsqueeze(-1)
        observed = observed & (real.unsqueeze(-1) & real.unsqueeze(-2))
    if weights is not None:
        observed = observed & (weights != 0)
    ones = torch.ones((), dtype=dtype, device=target.device)
    weights = torch.where(observed, ones if weights is None else weights.to(dtype), 0.0)
    return torch.where(observed, target.to(dtype), 0.0), weights


def correlate(
    distances: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor,
    *,
    method: str = "pearson",
    bounded: bool = False,
    target_bounded: bool = False,
    rank: Callable[[torch.Tensor], torch.Tensor] = fractional_rank,
) -> torch.Tensor:
    r"""Correlate distances with targets over the weighted pairs of every set.

    With :math:`\langle a\rangle = \sum_{i<j} w_{ij} a_{ij} / \sum_{i<j} w_{ij}`, distances d and targets h,

    * pearson: :math:`\langle (d - \langle d\rangle)(h - \langle h\rangle)\rangle` over the product of the standard
      deviations;
    * cosine: the same without subtracting the means;
    * spearman: the Pearson correlation of the ranks that d and h have among the observed pairs, ties sharing their mean
      rank. Weights only select pairs here and below: a pair counts fully or, at weight 0, not at all. No gradient;
    * tau-a: Kendall's, :math:`(C - D)/n_0` where of the :math:`n_0 = P(P - 1)/2` couples of the P observed pairs C are
      ordered alike by d and h, and D the other way round. No gradient;
    * tau-b: :math:`(C - D)/\sqrt{(n_0 - n_1)(n_0 - n_2)}`, with :math:`n_1` couples tied in d and :math:`n_2` in h. No
      gradient.

    r is 0, with zero gradient, where fewer than two pairs are observed or one side does not vary. A side does not vary
    when the variance of its distances (under "cosine" their mean square) is at most :math:`(\rho s)^2` with
    :math:`\rho` = ``ROUNDING`` and s the size of what its distances were computed from: their mean or, for metrics that
    compare unit vectors, 1 if that is larger. Any distance that is not finite makes r NaN, also where its weight
    is 0.

    Args:
        distances: (B, N, N).
        target: (B, N, N), zero where the weight is zero.
        weights: (B, N, N) non-negative, zero on and below the diagonal.
        method: one of ``METHODS``.
        bounded: whether the distances compare unit vectors.
        target_bounded: whether the targets do.
        rank: what ranks (B, 1, P) values, NaN where unobserved, for "spearman".

    Returns:
        (B,) in the dtype of the distances.
    """
    # what the correlation is where it is not defined: 0, or NaN when a distance or an observed target is not finite
    undefined = 0 * (distances.detach().sum((-2, -1)) + target.sum((-2, -1)))
    observed = weights != 0
    if method in RANK_METHODS:
        rows = observed.shape[-1]
        first, second = torch.triu_indices(rows, rows, offset=1, device=observed.device)
        distances, target, observed = (
            each[:, first, second].unsqueeze(1) for each in (distances.detach(), target, observed)
        )
        weights = observed.to(distances.dtype)

    centred = method != "cosine"
    ours, variance, still = _spread(distances, weights, centred=centred, bounded=bounded)
    theirs, target_variance, target_still = _spread(target, weights, centred=centred, bounded=target_bounded)
    degenerate = still | target_still | (observed.sum((-2, -1), keepdim=True) < 2)
    if method in ("tau-a", "tau-b"):
        r = torch.stack([_tau(*each, method=method) for each in zip(distances, target, observed, strict=True)])
        return torch.where(degenerate.flatten(), 0.0, r).to(undefined.dtype) + undefined
    if method == "spearman":
        weights = weights.double()
        ours, variance, _ = _spread(_ranks(distances, observed, rank), weights, centred=True, bounded=False)
        theirs, target_variance, _ = _spread(_ranks(target, observed, rank), weights, centred=True, bounded=False)
    deviation = torch.where(degenerate, 1.0, variance).sqrt() * torch.where(degenerate, 1.0, target_variance).sqrt()
    r = torch.where(degenerate, 0.0, _mean(ours * theirs, weights)) / deviation
    return r.flatten().to(undefined.dtype) + undefined


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Average every set with weights, (B, 1, 1); 0 where they sum to 0."""
    total = weights.sum((-2, -1), keepdim=True)
    return (weights * values).sum((-2, -1), keepdim=True) / torch.where(total == 0, 1.0, total)


def _spread(
    values: torch.Tensor, weights: torch.Tensor, *, centred: bool, bounded: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Measure how values spread about their mean or, uncentred, about 0.

    Returns:
        the values from there; their mean square (B, 1, 1); and (B, 1, 1) whether that is mere rounding.
    """
    centre = _mean(values, weights)
    values = values - centre if centred else values
    variance = _mean(values.square(), weights)
    size = centre.detach().abs()
    floor = ROUNDING[values.dtype] * (size.clamp_min(1.0) if bounded else size)
    return values, variance, variance.detach() <= floor.square()


def _ranks(values: torch.Tensor, observed: torch.Tensor, rank: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Rank the observed values (B, 1, P) of every set, float64; 0 where unobserved."""
    return torch.where(observed, rank(torch.where(observed, values, float("nan"))), 0.0)


def _tau(distances: torch.Tensor, target: torch.Tensor, observed: torch.Tensor, *, method: str) -> torch.Tensor:
    """Compute Kendall's tau of one set's distances and targets (1, P) over its observed pairs."""
    distances, target = distances[observed], target[observed]
    pairs = len(distances)
    # C - D, n_0 - n_1 and n_0 - n_2, each couple counted twice
    counts = torch.zeros(3, dtype=torch.int64, device=distances.device)
    at_a_time = max(COUPLES_AT_A_TIME // max(pairs, 1), 1)
    for start in range(0, pairs, at_a_time):
        some = slice(start, start + at_a_time)
        ours, theirs = _order(distances[some], distances), _order(target[some], target)
        counts += torch.stack([(ours * theirs).sum(), ours.abs().sum(), theirs.abs().sum()])
    score, varying, target_varying = (counts.double() / 2).unbind()
    scale = pairs * (pairs - 1) / 2 if method == "tau-a" else varying.sqrt() * target_varying.sqrt()
    return score / scale


def _order(values: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Compare all values (S,) with all others (P,): (S, P) int8, 1 where greater, -1 where smaller."""
    values = values.unsqueeze(-1)
    return (values > others).to(torch.int8) - (values < others).to(torch.int8)
