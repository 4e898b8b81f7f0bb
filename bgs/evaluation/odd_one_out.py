"""Odd-one-out accuracy of a set of embeddings: three-way and two-way, ties shared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHANCE_THREE_WAY = 1 / 3
CHANCE_TWO_WAY = 1 / 2


@dataclass(frozen=True, eq=False)
class Scores:
    """What each judgment scores.

    Attributes:
        three_way: (T,) 1 where the unchosen pair is the most similar of the three, 1/k where k pairs tie for it.
        two_way: (T,) mean over both anchors i, j of the unchosen pair: 1 where the other is more similar to the anchor
            than the odd one is, 1/2 where they tie.
    """

    three_way: NDArray[np.float64]
    two_way: NDArray[np.float64]


def score_judgments(similarity: NDArray[np.floating], triplets: NDArray[np.integer]) -> Scores:
    """Score odd-one-out judgments by the similarities of their items.

    Args:
        similarity: (N, N), symmetric.
        triplets: (T, 3) rows of items, the odd one last.

    Returns:
        The scores; NaN where a similarity is.
    """
    first, second, odd = np.asarray(triplets).T
    unchosen, anchor_first, anchor_second = similarity[first, second], similarity[first, odd], similarity[second, odd]
    sides = np.stack([unchosen, anchor_first, anchor_second])
    best = sides.max(axis=0)
    three_way = np.where(unchosen == best, 1 / np.maximum((sides == best).sum(axis=0), 1), 0.0)
    two_way = (_beats(unchosen, anchor_first) + _beats(unchosen, anchor_second)) / 2
    broken = np.isnan(best)
    return Scores(np.where(broken, np.nan, three_way), np.where(broken, np.nan, two_way))


def _beats(ours: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.where(ours == other, 0.5, (ours > other).astype(np.float64))


def resampled_accuracy(
    scores: NDArray[np.float64], triplets: NDArray[np.integer], draws: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted sums of scores under resampled items.

    A judgment counts as often as its three items can be put together from the drawn ones: the product of their counts.

    Args:
        scores: (T,) per judgment.
        triplets: (T, 3) rows of items.
        draws: (R, N) how often each item was drawn.

    Returns:
        Sum of weighted scores and sum of weights, both (R,); accuracy is their ratio, also when sums of several sets
        are added first.
    """
    first, second, odd = np.asarray(triplets).T
    total, weight = np.empty(len(draws)), np.empty(len(draws))
    for row, drawn in enumerate(draws):
        weights = drawn[first] * drawn[second] * drawn[odd]
        total[row], weight[row] = weights @ scores, weights.sum()
    return total, weight
