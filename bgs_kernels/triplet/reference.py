"""The definition of the triplet term, in plain PyTorch: the loss of odd-one-out judgments under the distances between
three rows, and the accuracy of the choices that those distances make.
"""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax, relu

from bgs_kernels.pairwise.reference import pairwise_distance

FORMS = ("softmax", "margin")

MATRIX_ENTRIES_PER_TRIPLET = 512
"""Up to how many entries of the N x N distance matrix per triplet it costs less to make the matrix and look distances
up in it than to gather three rows a triplet: measured with float32 on one CPU core, D = 128 and 768."""


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
    """Compute the triplet term of every set: ``triplet_terms`` of the distances of each triplet's three pairs.

    Args:
        embeddings: (B, N, D), any floating dtype.
        triplets: (B, T, 3) integer rows (i, j, k) of embeddings; k is the odd one.
        triplet_places, triplet_starts: those of a ``TripletIndex``, for other backends; they decide nothing here.
        weights, targets, form, temperature, margin: as in ``triplet_terms``.
        metric: the distance, one of ``bgs_kernels.pairwise.reference.METRICS``.

    Returns:
        (B,) in the compute dtype.
    """
    distances = triplet_distances(embeddings, triplets, metric=metric)
    return triplet_terms(
        distances, weights=weights, targets=targets, form=form, temperature=temperature, margin=margin
    )[0]


def triplet_distances(embeddings: torch.Tensor, triplets: torch.Tensor, *, metric: str) -> torch.Tensor:
    """Compute the distances of the pairs (ij, ik, jk) of every triplet, whichever way is cheaper.

    Args:
        embeddings: (B, N, D), any floating dtype.
        triplets: (B, T, 3) integer rows (i, j, k).
        metric: the distance.

    Returns:
        (B, T, 3) in the compute dtype.
    """
    count, rows = triplets.shape[1], embeddings.shape[1]
    if rows * rows <= MATRIX_ENTRIES_PER_TRIPLET * count:
        return pairs_of_triplets(pairwise_distance(embeddings, metric=metric), triplets)
    sets = torch.arange(len(embeddings), device=embeddings.device)[:, None, None]
    of_three = pairwise_distance(embeddings[sets, triplets.long()], metric=metric)  # (B, T, 3, 3)
    return torch.stack((of_three[..., 0, 1], of_three[..., 0, 2], of_three[..., 1, 2]), dim=-1)


def pairs_of_triplets(matrix: torch.Tensor, triplets: torch.Tensor) -> torch.Tensor:
    """Look up the pairs (ij, ik, jk) of every triplet in the upper triangle of a matrix.

    Args:
        matrix: (B, N, N).
        triplets: (B, T, 3) integer rows (i, j, k).

    Returns:
        (B, T, 3).
    """
    i, j, k = triplets.long().unbind(-1)
    first, second = torch.stack((i, i, j), -1), torch.stack((j, k, k), -1)
    places = torch.minimum(first, second) * matrix.shape[-1] + torch.maximum(first, second)
    return matrix.flatten(1).gather(1, places.flatten(1)).view(places.shape)


def triplet_terms(
    distances: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
    form: str = "softmax",
    temperature: float = 1.0,
    margin: float = 0.2,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss and the three-way accuracy of every set from the distances of its triplets' pairs.

    With similarities s = -d / temperature, the loss of a triplet (i, j, k) whose odd one is k is

    * softmax: logsumexp(s_ij, s_ik, s_jk) - s_ij, the odd-one-out cross-entropy of SPoSE and VICE; with targets
      (q_ij, q_ik, q_jk) the cross-entropy logsumexp(s) - q . s;
    * margin: max(0, d_ij - d_ik + margin), as published for behavioural geometric supervision (arXiv 2510.01502).

    A triplet is right when ij is its closest pair; when m pairs are equally close it counts 1/m. Both are averaged with
    the weights. A distance that is not finite makes both of them NaN, whatever the triplet's weight.

    Args:
        distances: (B, T, 3) distances of the pairs ij, ik, jk.
        weights: (B, T) non-negative weights of the triplets; equal by default.
        targets: (B, T, 3) observed shares of the pairs ij, ik, jk; for the softmax form only.
        form: one of ``FORMS``.
        temperature: the softmax form's temperature, in units of distance.
        margin: the margin form's margin, in units of distance.

    Returns:
        loss (B,), zero where the weights sum to zero; accuracy (B,), without gradient, NaN where they do.
    """
    # an infinite distance would leave a finite loss behind: exp(-inf) = 0
    distances = distances + torch.where(distances.detach().isfinite(), 0.0, float("nan")).to(distances.dtype)
    near, far = distances[..., 0], distances[..., 1]
    if form == "margin":
        losses = relu(near - far + margin)
    else:
        log_shares = log_softmax(-distances / temperature, dim=-1)
        losses = -log_shares[..., 0] if targets is None else -(targets.to(distances.dtype) * log_shares).sum(-1)

    closest = distances.detach().amin(-1)
    tied = (distances.detach() == closest.unsqueeze(-1)).sum(-1)
    right = torch.where(near.detach() == closest, 1.0 / tied, 0.0).to(distances.dtype) + 0 * closest
    weights = torch.ones_like(near) if weights is None else weights.to(distances.dtype)
    total = weights.sum(-1)
    loss = (weights * losses).sum(-1) / torch.where(total == 0, 1.0, total)
    return loss, (weights * right).sum(-1) / total
