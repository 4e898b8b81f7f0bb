"""The RSA correlation by the Triton kernels: the hybrid loss without triplets."""

from __future__ import annotations

import torch

from bgs_kernels.hybrid_loss.fused import hybrid_loss, passes_over, unavailable, why_not

__all__ = ["passes_over", "rsa_correlation", "unavailable", "why_not"]


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
    return -hybrid_loss(
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
