"""Agreement of a model's geometry with people's over the observed pairs, under weights: Pearson, Spearman, cosine and
Kendall's tau-a.

Weights are counts here: a pair of weight w stands for w equal pairs. That is what resampling items needs, and with
weights of one it is the ordinary coefficient.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

Method = Literal["pearson", "spearman", "cosine", "tau-a"]

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
        method: as rsatoolbox defines them: `pearson`; `spearman`, Pearson of average-tie ranks, ranked anew under every
            row of weights; `cosine`, sum(x y) / sqrt(sum(x^2) sum(y^2)), which any two lists of positive numbers have
            far above 0; `tau-a`, (C - D) / (n (n - 1) / 2) with C couples of pairs in the same order, D in the opposite
            one and those tied on a side in neither.

    Returns:
        (R,) coefficients; NaN with fewer than two pairs of positive weight or where a side is constant (for `cosine`:
        where it is zero).

    Raises:
        ValueError: the lists differ in length; the method is unknown; weights of `tau-a` that are no whole numbers.
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
    if method == "cosine":
        return np.array([_cosine(x, y, row) for row in weights])
    if method == "tau-a":
        if (weights != np.rint(weights)).any():
            raise ValueError("weights: not whole numbers; Kendall's tau-a counts copies of pairs")
        return np.array([_tau_a(x, y, row.astype(np.int64)) for row in weights])
    if method != "spearman":
        raise ValueError(f"method: {method!r}; expected one of {', '.join(get_args(Method))}")
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


def _cosine(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    scale = np.sqrt(weights @ x**2) * np.sqrt(weights @ y**2)
    if np.count_nonzero(weights) < 2 or scale == 0:
        return float("nan")
    return float(weights @ (x * y) / scale)


def _tau_a(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.int64]) -> float:
    if np.count_nonzero(weights) < 2:
        return float("nan")
    x, y = np.repeat(x, weights), np.repeat(y, weights)
    couples = len(x) * (len(x) - 1) / 2
    untied = [couples - (size * (size - 1) / 2).sum() for size in (_copies(x), _copies(y))]
    if not min(untied):
        return float("nan")
    # SciPy has tau-b = (C - D) / sqrt(untied_x untied_y), in O(n log n); its p-value is not looked at.
    return float(kendalltau(x, y, method="asymptotic").statistic) * float(np.sqrt(untied[0] * untied[1])) / couples


def _copies(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.unique(values, return_counts=True)[1]
