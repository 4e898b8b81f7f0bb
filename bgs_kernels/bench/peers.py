"""The peers: what a good user of PyTorch writes by hand instead of calling this package. One function a peer, with
everything that does not change from step to step made beforehand, outside of what is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

OF_UNIT_VECTORS = ("cosine", "correlation")
"""Metrics whose distance is 1 minus a similarity; that of the others is minus a similarity."""

PRODUCTS = (*OF_UNIT_VECTORS, "dot")
"""Metrics whose similarities are one matrix product, which can be in half precision."""


class Settings(NamedTuple):
    """Those of ``bgs_kernels.hybrid_loss``, under the same names."""

    alpha: float = 0.7
    beta: float = 0.3
    triplet: str = "softmax"
    temperature: float = 1.0
    margin: float = 0.2
    metric: str = "cosine"
    rsa: str = "pearson"


class Judgments(NamedTuple):
    """What is known before training begins.

    Args:
        triplets: (T, 3) rows (i, j, k); k is the odd one.
        labels: (T,) zeros: of the pairs ij, ik, jk the first was chosen.
        places: (P,) where the observed pairs i < j stand in a flattened N x N matrix.
        targets: (P,) their dissimilarities.
        triplet_places: (3T,) where the pairs ij of all triplets stand in that matrix, then ik, then jk.
    """

    triplets: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    triplet_places: torch.Tensor


def observed_pairs(target: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the observed pairs i < j of a matrix of dissimilarities.

    Args:
        target: (N, N), NaN where unobserved.
        mask: (N, N) bool, True where observed.

    Returns:
        their places in the flattened matrix, (P,) int64, and their dissimilarities (P,).
    """
    observed = ~target.isnan() if mask is None else ~target.isnan() & mask
    places = observed.triu(1).flatten().nonzero().squeeze(1)
    return places, target.flatten()[places]


def judgments(triplets: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> Judgments:
    """Make what every step uses; the arguments are those of ``observed_pairs`` and (T, 3) triplets."""
    i, j, k = triplets.T
    rows = len(target)
    triplet_places = torch.cat([i * rows + j, i * rows + k, j * rows + k])
    return Judgments(triplets, torch.zeros_like(i), *observed_pairs(target, mask), triplet_places)


def similarities(x: torch.Tensor, metric: str) -> torch.Tensor:
    """Compute the similarities (N, N) of rows (N, D): what ``distances`` are made of."""
    if metric == "euclidean":
        return -torch.cdist(x, x)
    if metric == "sqeuclidean":
        return -torch.cdist(x, x).square()
    if metric == "correlation":
        x = x - x.mean(1, keepdim=True)
    if metric in OF_UNIT_VECTORS:
        x = F.normalize(x, dim=1)
    return x @ x.T


def distances(s: torch.Tensor, metric: str) -> torch.Tensor:
    """Give the distances that similarities stand for."""
    return 1 - s if metric in OF_UNIT_VECTORS else -s


def correlation(d: torch.Tensor, h: torch.Tensor, rsa: str) -> torch.Tensor:
    """Correlate the distances of the observed pairs with their targets, (P,) both."""
    if rsa == "pearson":
        d, h = d - d.mean(), h - h.mean()
    r: torch.Tensor = (d * h).sum() / (d.norm() * h.norm())
    return r


def eager(embeddings: torch.Tensor, known: Judgments, settings: Settings) -> torch.Tensor:
    """Compute the hybrid loss of embeddings (N, D) in float32."""
    return _loss(similarities(embeddings.float(), settings.metric), known, settings)


def eager_in_half(embeddings: torch.Tensor, known: Judgments, settings: Settings) -> torch.Tensor:
    """Compute the same with the product in the embeddings' own half precision, and the rest in float32."""
    return _loss(similarities(embeddings, settings.metric).float(), known, settings)


def _loss(s: torch.Tensor, known: Judgments, settings: Settings) -> torch.Tensor:
    i, j, k = known.triplets.T
    if settings.triplet == "softmax":
        logits = torch.stack([s[i, j], s[i, k], s[j, k]], 1) / settings.temperature
        term = F.cross_entropy(logits, known.labels)
    else:
        term = F.relu(s[i, k] - s[i, j] + settings.margin).mean()
    d = distances(s.flatten()[known.places], settings.metric)
    return settings.alpha * term - settings.beta * correlation(d, known.targets, settings.rsa)


def eager_tuned(embeddings: torch.Tensor, known: Judgments, settings: Settings) -> torch.Tensor:
    """Compute the same as ``eager`` after an hour with the profiler: the places of the triplets' pairs are made
    beforehand as well, ``index_select`` gathers, because its gradient costs less, and the cross-entropy is a
    ``logsumexp`` over three long rows."""
    s = similarities(embeddings.float(), settings.metric).flatten()
    pairs = s.index_select(0, known.triplet_places).view(3, -1)
    if settings.triplet == "softmax":
        logits = pairs / settings.temperature
        term = (logits.logsumexp(0) - logits[0]).mean()
    else:
        term = F.relu(pairs[1] - pairs[0] + settings.margin).mean()
    d = distances(s.index_select(0, known.places), settings.metric)
    return settings.alpha * term - settings.beta * correlation(d, known.targets, settings.rsa)


def compiled(loss: Callable[..., torch.Tensor], mode: str) -> Callable[..., torch.Tensor]:
    """Compile ``eager`` or ``eager_in_half`` for one size.

    Args:
        loss: one of them.
        mode: "default", "reduce-overhead" or "max-autotune"; the last two run in CUDA graphs of their own.
    """
    return torch.compile(loss, mode=mode, dynamic=False, fullgraph=True)


def keops(
    target_embeddings: torch.Tensor, triplets: torch.Tensor, settings: Settings
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make the loss whose correlation with target embeddings (N, E) is KeOps's: no N x N matrix is held. It is of the
    metric "cosine", the form "softmax" and the RSA "pearson"; the triplets are gathered in PyTorch.

    Raises:
        ImportError: pykeops is not installed.
    """
    from pykeops.torch import LazyTensor

    far = F.normalize(target_embeddings.float(), dim=1)
    h = LazyTensor(far[:, None]) | LazyTensor(far[None])
    count = len(far)

    def loss_of(embeddings: torch.Tensor) -> torch.Tensor:
        near = F.normalize(embeddings.float(), dim=1)
        c = LazyTensor(near[:, None]) | LazyTensor(near[None])
        moments = LazyTensor.cat((c, h, c * c, h * h, c * h), -1).sum(dim=1, dtype_acc="float64")
        # all pairs, both ways; the diagonal's cosines are 1
        mean_c, mean_h, cc, hh, ch = ((moments.double().sum(0) - count) / (count * (count - 1))).unbind()
        r: torch.Tensor = (ch - mean_c * mean_h) / ((cc - mean_c**2) * (hh - mean_h**2)).sqrt()
        i, j, k = (near[triplets[:, place]] for place in range(3))
        cosines = torch.stack(((i * j).sum(1), (i * k).sum(1), (j * k).sum(1)), 1)
        term = -(cosines / settings.temperature).log_softmax(1)[:, 0].mean()
        return settings.alpha * term - settings.beta * r.float()

    return loss_of


def products(embeddings: torch.Tensor) -> torch.Tensor:
    """Compute the two full matrix products of a step alone, x x^T and its product with x: no peer but a limit, below
    which only what uses the symmetry of the distances can come."""
    return torch.mm(torch.mm(embeddings, embeddings.T), embeddings)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute attention (B, H, N, D) by two products and a softmax in float32, as transformers' "eager" does."""
    scores = (query @ key.mT) * query.shape[-1] ** -0.5
    attended: torch.Tensor = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
    return attended
