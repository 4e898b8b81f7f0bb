"""The definition of the hybrid loss, in plain PyTorch: the triplet term and the RSA term of one distance matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch

from bgs_kernels.pairwise.reference import BOUNDED_METRICS, compute_dtype, pairwise_distance
from bgs_kernels.rsa.reference import correlate, observed_pairs
from bgs_kernels.triplet.reference import pairs_of_triplets, triplet_distances, triplet_terms


class HybridTerms(NamedTuple):
    """The hybrid loss and what it is made of; only ``loss`` carries a gradient.

    Args:
        loss: alpha * triplet - beta * rsa.
        triplet: the triplet term, in nats for the softmax form and units of distance for the margin form.
        rsa: the correlation r of distances and targets, NaN where no target was given.
        accuracy: the share of judgments whose unchosen pair is the closest of the three, chance 1/3; NaN without any.
    """

    loss: torch.Tensor
    triplet: torch.Tensor
    rsa: torch.Tensor
    accuracy: torch.Tensor


def hybrid_loss(
    embeddings: torch.Tensor,
    triplets: torch.Tensor,
    target: torch.Tensor | None = None,
    *,
    triplet_places: torch.Tensor | None = None,
    triplet_starts: torch.Tensor | None = None,
    target_embeddings: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    triplet_weights: torch.Tensor | None = None,
    triplet_targets: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    alpha: float = 0.7,
    beta: float = 0.3,
    triplet: str = "softmax",
    temperature: float = 1.0,
    margin: float = 0.2,
    metric: str = "cosine",
    target_metric: str = "cosine",
    rsa: str = "pearson",
) -> HybridTerms:
    """Compute the hybrid loss of every set: alpha * triplet - beta * r.

    The triplet term and the accuracy are ``bgs_kernels.triplet.reference.triplet_terms``, r is
    ``bgs_kernels.rsa.reference.correlate``, both of the same distances. When beta is 0 the correlation takes no part in
    the loss, not even as NaN.

    Args:
        embeddings: (B, N, D), any floating dtype.
        triplets: (B, T, 3) integer rows (i, j, k); k is the odd one.
        triplet_places, triplet_starts: those of a ``TripletIndex``, for other backends; they decide nothing here.
        target, target_embeddings, mask, weights, target_metric: as in ``bgs_kernels.rsa.reference.observed_pairs``;
            without a target the correlation is NaN.
        triplet_weights, triplet_targets, triplet, temperature, margin: as ``weights``, ``targets``, ``form``,
            ``temperature`` and ``margin`` in ``bgs_kernels.triplet.reference.triplet_terms``.
        lengths: (B,) number of rows of each set; the rows after them are padding and may hold anything.
        alpha, beta: the factors of the two terms.
        metric: the distance.
        rsa: the correlation, "pearson" or "cosine".

    Returns:
        Every term per set, (B,) in the compute dtype.
    """
    sets, rows, _ = embeddings.shape
    embeddings = embeddings.to(compute_dtype(embeddings.dtype))
    if lengths is not None:
        padding = (torch.arange(rows, device=embeddings.device) >= lengths.unsqueeze(-1)).unsqueeze(-1)
        embeddings = embeddings.masked_fill(padding, 0.0)
        if target_embeddings is not None:
            target_embeddings = target_embeddings.masked_fill(padding, 0.0)

    if target is None and target_embeddings is None:
        distances = triplet_distances(embeddings, triplets, metric=metric)
        correlation = embeddings.new_full((sets,), float("nan"))
    else:
        matrix = pairwise_distance(embeddings, metric=metric)
        distances = pairs_of_triplets(matrix, triplets)
        pair_targets, pair_weights = observed_pairs(
            target,
            target_embeddings=target_embeddings,
            mask=mask,
            weights=weights,
            lengths=lengths,
            target_metric=target_metric,
            dtype=embeddings.dtype,
        )
        correlation = correlate(
            matrix,
            pair_targets,
            pair_weights,
            method=rsa,
            bounded=metric in BOUNDED_METRICS,
            target_bounded=target_embeddings is not None and target_metric in BOUNDED_METRICS,
        )
    triplet_term, accuracy = triplet_terms(
        distances,
        weights=triplet_weights,
        targets=triplet_targets,
        form=triplet,
        temperature=temperature,
        margin=margin,
    )
    loss = alpha * triplet_term
    if beta:
        loss = loss - beta * correlation
    return HybridTerms(loss, triplet_term.detach(), correlation.detach(), accuracy)
