"""RSA layer by layer: where in an encoder the geometry is most like people's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from bgs.data.geometry import dissimilarity
from bgs.data.judgments import Judgments
from bgs.evaluation.bootstrap import interval, resample_items
from bgs.evaluation.evaluate import cosine_similarity, reliability_ceiling
from bgs.evaluation.rsa import Method, correlate

RESAMPLES = 1000
DIVISIONS = 100
"""Random divisions of the items into those that choose the best layer and those that score it."""


@dataclass(frozen=True)
class Layer:
    """Agreement of one layer with people.

    Attributes:
        number: of the layer; 0 is what enters the first.
        value: correlation of its distances with people's; None where it is undefined.
        ci95: 95 % bootstrap interval over items.
        best: share of the bootstrap draws in which this layer is the best.
    """

    number: int
    value: float | None
    ci95: tuple[float, float] | None
    best: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields; `layer` for the number."""
        return {
            "layer": self.number,
            "value": self.value,
            "ci95": list(self.ci95) if self.ci95 else None,
            "best": self.best,
        }


@dataclass(frozen=True)
class LayerwiseRSA:
    """Agreement of all layers with people; see `layerwise_rsa`.

    Attributes:
        layers: in the order given.
        best: number of the layer with the highest value; None where all are undefined.
        held_out: what the best layer scores on items that had no say in which it is, mean over divisions.
        held_out_interval: the middle 95 % of the divisions.
        ceiling: bound by the reliability of people's dissimilarities; None where that is unknown.
        method: of the correlation.
        pairs: number of observed pairs.
    """

    layers: tuple[Layer, ...]
    best: int | None
    held_out: float | None
    held_out_interval: tuple[float, float] | None
    ceiling: float | None
    method: Method
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        bounds = list(self.held_out_interval) if self.held_out_interval else None
        return vars(self) | {"layers": [layer.to_dict() for layer in self.layers], "held_out_interval": bounds}


def layerwise_rsa(
    embeddings: NDArray[np.floating],
    judgments: Judgments,
    numbers: Sequence[int] | None = None,
    *,
    method: Method = "spearman",
    resamples: int = RESAMPLES,
    divisions: int = DIVISIONS,
    seed: int = 0,
    progress: bool = False,
) -> LayerwiseRSA:
    """Correlate the cosine distances of every layer with people's dissimilarities over the observed pairs.

    The interval of a layer is that of a layer named beforehand. The best of several is chosen because it is high, so
    that its value is too; what a chosen layer is worth says `held_out`: items are divided into halves, one half's
    pairs choose the layer and the other half's score it.

    Args:
        embeddings: (L, N, width), as `Embedder.embed_layers` gives them, finite.
        judgments: over the N items.
        numbers: of the L layers; None for 0 to L - 1.
        method: see `correlate`.
        resamples: bootstrap draws of items, the same for all layers.
        divisions: of the items.
        seed: of draws and divisions.
        progress: whether to show a progress bar.

    Returns:
        All layers, and the best.

    Raises:
        ValueError: a shape or number that does not fit, or embeddings that are not finite.
    """
    numbers = list(range(len(embeddings))) if numbers is None else list(numbers)
    items = len(judgments.items)
    if embeddings.ndim != 3 or embeddings.shape[1] != items or not len(embeddings):
        raise ValueError(f"embeddings: shape {embeddings.shape}; expected (layers, {items}, width)")
    if len(numbers) != len(embeddings) or len(set(numbers)) < len(numbers):
        raise ValueError(f"numbers: {numbers} for {len(embeddings)} layers; expected one for each, none twice")
    finite = np.isfinite(embeddings).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(f"embeddings: layer {numbers[int(finite.argmin())]} is not finite")
    human = dissimilarity(judgments)
    rows, columns = np.triu_indices(items, 1)
    observed = np.isfinite(human[rows, columns])
    rows, columns = rows[observed], columns[observed]
    people = human[rows, columns]
    distances = [1 - cosine_similarity(torch.from_numpy(np.asarray(layer)))[rows, columns] for layer in embeddings]
    draws = resample_items(items, resamples, seed)
    values, again = np.full(len(numbers), np.nan), np.full((resamples, len(numbers)), np.nan)
    for place, layer in enumerate(tqdm(distances, desc="layers", unit="layer", disable=not progress, leave=False)):
        if len(people) < 2:
            break
        values[place] = correlate(layer, people, method=method)[0]
        again[:, place] = [correlate(layer, people, (d[rows] * d[columns])[None], method)[0] for d in draws]
    known = np.isfinite(values)
    winner = np.where(np.isfinite(again), again, -np.inf).argmax(axis=1)[np.isfinite(again).any(axis=1)]
    share = np.bincount(winner, minlength=len(numbers)) / max(len(winner), 1)
    held_out = _held_out_best(distances, people, rows, columns, items, method, divisions, seed)
    bound = reliability_ceiling([judgments], (method,), seed).get(f"rsa.{method}")
    return LayerwiseRSA(
        layers=tuple(
            Layer(number, float(value) if np.isfinite(value) else None, interval(drawn), float(best))
            for number, value, drawn, best in zip(numbers, values, again.T, share, strict=True)
        ),
        best=numbers[int(np.nanargmax(values))] if known.any() else None,
        held_out=float(held_out.mean()) if len(held_out) else None,
        held_out_interval=interval(held_out) if len(held_out) else None,
        ceiling=bound["upper"] if bound else None,
        method=method,
        pairs=len(people),
    )


def _held_out_best(
    distances: Sequence[NDArray[np.float32]],
    people: NDArray[np.float64],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    items: int,
    method: Method,
    divisions: int,
    seed: int,
) -> NDArray[np.float64]:
    """What the layer that is best for half of the items scores on the other half, for each division that allows it."""
    generator = np.random.Generator(np.random.PCG64(seed))
    found = []
    for _ in range(divisions):
        first = generator.permutation(items) < items // 2
        choosing, scoring = first[rows] & first[columns], ~first[rows] & ~first[columns]
        scores = np.array([correlate(layer[choosing], people[choosing], method=method)[0] for layer in distances])
        if np.isfinite(scores).any():
            layer = distances[int(np.nanargmax(scores))]
            found.append(correlate(layer[scoring], people[scoring], method=method)[0])
    values = np.array(found, dtype=np.float64)
    return values[np.isfinite(values)]
