"""The triplet term by csrc: the hybrid loss without a target."""

from __future__ import annotations

import torch

from bgs_kernels.hybrid_loss.native import hybrid_loss, passes_over, unavailable, why_not

__all__ = ["passes_over", "triplet_loss", "unavailable", "why_not"]


def triplet_loss(
    embeddings: torch.Tensor,
    triplets: torch.Tensor,
    *,
    triplet_places: torch.Tensor | None = None,
    triplet_starts: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
    form: str = "softmax",
    metric: str = "cosine",
    temperature: float = 1.0,
    margin: float = 0.2,
) -> torch.Tensor:
    """Compute the triplet term of every set; arguments and result as ``bgs_kernels.triplet.reference.triplet_loss``."""
    return hybrid_loss(
        embeddings,
        triplets,
        triplet_weights=weights,
        triplet_targets=targets,
        alpha=1.0,
        beta=0.0,
        triplet=form,
        temperature=temperature,
        margin=margin,
        metric=metric,
    ).loss
