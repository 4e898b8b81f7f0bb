"""The RSA correlation of ranks by csrc/cpu/rank_correlation.cpp: PyTorch makes the distances, and what gathers, ranks
and correlates them is compiled.
"""

from __future__ import annotations

import torch

from bgs_kernels import native
from bgs_kernels.dispatch import Request
from bgs_kernels.pairwise.reference import BOUNDED_METRICS, ROUNDING, compute_dtype, pairwise_distance
from bgs_kernels.rank.native import compute as rank
from bgs_kernels.rsa.reference import PRECOMPUTED, RANK_METHODS, correlate, observed_pairs

MOST_PAIRS = 2**32
"""Kendall's tau packs two places among the pairs of a set into a word of 64 bits."""


def why_not(request: Request) -> str | None:
    """Say why the compiled module cannot serve a call of a rank method, or None."""
    method = request.options["method"]
    rows = request.tensors["embeddings"].shape[-2]
    if method != "spearman" and rows * (rows - 1) // 2 > MOST_PAIRS:
        return f"places among more than {MOST_PAIRS} pairs do not fit 32 bits"
    if request.tensors["embeddings"].is_cuda:
        return native.why_not_cuda() if method == "spearman" else "Kendall's tau is counted on the CPU"
    return native.elsewhere(request)


def compute(
    embeddings: torch.Tensor,
    target: torch.Tensor | None,
    target_embeddings: torch.Tensor | None,
    mask: torch.Tensor | None,
    weights: torch.Tensor | None,
    metric: str,
    target_metric: str,
    method: str,
) -> torch.Tensor:
    """Compute the correlation of every set; arguments and result as ``bgs_kernels.rsa.reference.rsa_correlation``."""
    dtype = compute_dtype(embeddings.dtype)
    if embeddings.is_cuda:
        return _on_cuda(embeddings.to(dtype), target, target_embeddings, mask, weights, metric, target_metric)
    made_here = metric != PRECOMPUTED
    distances = pairwise_distance(embeddings, metric=metric) if made_here else embeddings.to(dtype)
    from_embeddings = target is None
    if target is None:
        assert target_embeddings is not None
        target = pairwise_distance(target_embeddings.to(dtype), metric=target_metric)
    elif target.dtype not in (torch.float32, torch.float64):
        target = target.to(dtype)
    observed = mask
    if weights is not None:
        observed = weights != 0 if mask is None else mask & (weights != 0)
    sets, rows = distances.shape[:2]
    correlations = torch.empty(sets, dtype=torch.float64, device="cpu")
    native.module.rank_correlation(
        native.argument(distances),
        native.argument(target),
        native.argument(observed),
        sets=sets,
        rows=rows,
        all_finite=made_here,
        nan_observed=from_embeddings,
        rounding=ROUNDING[dtype],
        bounded=metric in BOUNDED_METRICS,
        target_bounded=from_embeddings and target_metric in BOUNDED_METRICS,
        method=RANK_METHODS.index(method),
        correlations=native.argument(correlations),
        threads=native.threads(),
    )
    return correlations.to(dtype)


def _on_cuda(
    embeddings: torch.Tensor,
    target: torch.Tensor | None,
    target_embeddings: torch.Tensor | None,
    mask: torch.Tensor | None,
    weights: torch.Tensor | None,
    metric: str,
    target_metric: str,
) -> torch.Tensor:
    """Compute Spearman's correlations as the reference does, but with the ranks of csrc."""
    pair_targets, pair_weights = observed_pairs(
        target,
        target_embeddings=target_embeddings,
        mask=mask,
        weights=weights,
        target_metric=target_metric,
        dtype=embeddings.dtype,
    )
    if metric == PRECOMPUTED:
        distances = torch.where(pair_weights != 0, embeddings, 0.0)
    else:
        distances = pairwise_distance(embeddings, metric=metric)
    return correlate(
        distances,
        pair_targets,
        pair_weights,
        method="spearman",
        bounded=metric in BOUNDED_METRICS,
        target_bounded=target is None and target_metric in BOUNDED_METRICS,
        rank=rank,
    )


rank_correlation = torch.library.custom_op("bgs_kernels::rank_correlation", compute, mutates_args=())


@rank_correlation.register_fake
def _(embeddings, *others):  # type: ignore[no-untyped-def]
    return embeddings.new_empty(len(embeddings), dtype=compute_dtype(embeddings.dtype))
