"""Comparison of any number of models that were evaluated on the same items and judgments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgs.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Comparison:
    """One measure of two models; see `compare_models`.

    Attributes:
        first, second: the models.
        measure: such as `rsa.spearman`.
        difference: first minus second; None where either is undefined.
        ci95: 95 % paired bootstrap interval over items.
        p: two-sided; None where it is undefined.
        p_corrected: p corrected for the number of pairs of models, in this measure.
    """

    first: str
    second: str
    measure: str
    difference: float | None
    ci95: tuple[float, float] | None
    p: float | None
    p_corrected: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return vars(self) | {"ci95": list(self.ci95) if self.ci95 else None}


def compare_models(evaluations: Mapping[str, Evaluation]) -> list[Comparison]:
    """Compare every two models in every measure.

    The interval is of the paired differences over the bootstrap draws of items, which are the same for all models.
    With R of them defined, p = min(1, 2 (1 + min(draws <= 0, draws >= 0)) / (1 + R)): how surely the difference keeps
    its sign for other items. It is corrected by Holm's method for the pairs of models.

    There is no sign-flip or permutation test. Flipping the sign of the models' difference judgment by judgment, or pair
    by pair, takes those for independent; they share items, and the p values would be far too small. Items, which are
    independent, cannot be exchanged between models one by one: a distance needs both of its items in the same model.

    Args:
        evaluations: by name, at least two, made with the same items, judgments, draws and seed.

    Returns:
        Comparisons, measure by measure, the models in the order given.

    Raises:
        ValueError: fewer than two models, or evaluations of other judgments.
    """
    if len(evaluations) < 2:
        raise ValueError(f"evaluations: {len(evaluations)} given; expected at least 2")
    pairs = list(combinations(evaluations, 2))
    differences = {(a, b): evaluations[a].minus(evaluations[b]) for a, b in pairs}
    found = []
    for name in next(iter(evaluations.values())).measures:
        chances = [_p(evaluations[a].resampled[name] - evaluations[b].resampled[name]) for a, b in pairs]
        measured = [differences[pair][name] for pair in pairs]
        chances = [p if item.value is not None else None for p, item in zip(chances, measured, strict=True)]
        for pair, item, p, corrected in zip(pairs, measured, chances, holm(chances), strict=True):
            found.append(Comparison(*pair, name, item.value, item.ci95, p, corrected))
    return found


def holm(chances: list[float | None]) -> list[float | None]:
    """Correct p values for their number by Holm's step-down method (1979); None stays None and is not counted."""
    order = sorted((place for place, p in enumerate(chances) if p is not None), key=lambda place: chances[place] or 0.0)
    corrected: list[float | None] = [None] * len(chances)
    least = 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * (chances[place] or 0.0)))
        corrected[place] = least
    return corrected


def _p(differences: NDArray[np.float64]) -> float | None:
    defined = differences[np.isfinite(differences)]
    if not len(defined) or len(defined) * 2 < len(differences):
        return None
    side = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return float(min(1.0, 2 * (1 + side) / (1 + len(defined))))
