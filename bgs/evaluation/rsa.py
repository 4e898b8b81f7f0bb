"""Correlation of a model's geometry with people's: Pearson and Spearman over the observed pairs, under weights.

Weights are counts here: a pair of weight w stands for w equal pairs. That is what resampling items needs, and with
weights of one it is the ordinary coefficient.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["pearson", "spearman"]

# Standard deviation, relative to the mean, below which a variable counts as constant: float64 rounding of the sums.
_CONSTANT = 1e-12


def correlate(
    model: NDArray[np.floating],
    human: NDArray[np.floating],
    weights: NDArray[np.float64] | None = None,
    method: Method = "pearson",
) -> NDArray[np.float64]:
    """Correlate two lists of pair dissimilarities, once for each row of weights.

    Args:
        model: (P,) dissimilarities of the model.
        human: (P,) dissimilarities of people; no NaN.
        weights: (R, P) non-negative counts; None for one row of ones.
        method: `pearson`, or `spearman`: Pearson of average-tie ranks, ranked anew under every row of weights.

    Returns:
        (R,) coefficients; NaN with fewer than two pairs of positive weight or where a side is constant.

    Raises:
        ValueError: the lists differ in length.
    """
    x, y = np.asarray(model, dtype=np.float64), np.asarray(human, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"model and human: shapes {x.shape} and {y.shape}; expected two lists of one length")
    if weights is None:
        weights = np.ones((1, len(x)))
    if not np.isfinite(x).all():
        return np.full(len(weights), np.nan)
    if method == "pearson":
        return np.array([_pearson(x, y, row) for row in weights])
    ranking, human_ranking = _Ranking(x), _Ranking(y)
    return np.array([_pearson(ranking.ranks(row), human_ranking.ranks(row), row) for row in weights])


class _Ranking:
    """Average-tie ranks of fixed values under changing counts; the values are sorted once."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        first = np.ones(len(values), dtype=bool)
        first[1:] = ordered[1:] != ordered[:-1]
        self._group = np.empty(len(values), dtype=np.int64)
        self._group[self._order] = np.cumsum(first) - 1

    def ranks(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rank of each value among all copies: those below it, and the middle of those equal to it."""
        size = np.bincount(self._group, weights=weights)
        below = np.cumsum(size) - size
        return (below + (size + 1) / 2)[self._group]


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    total = weights.sum()
    if np.count_nonzero(weights) < 2:
        return float("nan")
    mean_x, mean_y = weights @ x / total, weights @ y / total
    x, y = x - mean_x, y - mean_y
    deviation_x, deviation_y = np.sqrt(weights @ x**2 / total), np.sqrt(weights @ y**2 / total)
    if deviation_x <= _CONSTANT * max(abs(mean_x), 1e-300) or deviation_y <= _CONSTANT * max(abs(mean_y), 1e-300):
        return float("nan")
    return float(weights @ (x * y) / (total * deviation_x * deviation_y))
