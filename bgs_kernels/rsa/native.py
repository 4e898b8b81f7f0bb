"""The RSA correlation by csrc: the hybrid loss without triplets, and the correlations of ranks."""

from __future__ import annotations

import torch

from bgs_kernels.dispatch import Request
from bgs_kernels.hybrid_loss import native as hybrid
from bgs_kernels.hybrid_loss.native import unavailable
from bgs_kernels.rsa import native_ranks
from bgs_kernels.rsa.reference import PRECOMPUTED, RANK_METHODS

__all__ = ["rsa_correlation", "unavailable", "why_not"]


def why_not(request: Request) -> str | None:
    """Say why csrc cannot serve a call, or None."""
    if request.options["method"] in RANK_METHODS:
        return native_ranks.why_not(request)
    if request.options["metric"] == PRECOMPUTED:
        return "the kernels make their distances themselves"
    return hybrid.why_not(request)


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
    """Compute the correlation of every set; arguments and result as ``bgs_kernels.rsa.reference.rsa_correlation``."""
    if method in RANK_METHODS:
        correlations: torch.Tensor = native_ranks.rank_correlation(
            embeddings.detach(), target, target_embeddings, mask, weights, metric, target_metric, method
        )
        return correlations
    return -hybrid.hybrid_loss(
        embeddings,
        torch.empty((len(embeddings), 0, 3), dtype=torch.int32, device=embeddings.device),
        target,
        target_embeddings=target_embeddings,
        mask=mask,
        weights=weights,
        alpha=0.0,
        beta=1.0,
        metric=metric,
        target_metric=target_metric,
        rsa=method,
    ).loss
