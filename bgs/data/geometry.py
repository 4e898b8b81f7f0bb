"""What odd-one-out judgments say about the items: how often each pair was shown and left together, the dissimilarities
that follow, and the choice shares of triplets judged more than once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bgs.data.judgments import Judgments
from bgs_kernels import triplet_counts


@dataclass(frozen=True, eq=False)
class PairCounts:
    """How often two items were judged, and left together.

    Args:
        shown: (N, N) int64, judgments in which the two items were shown; symmetric, 0 on the diagonal.
        together: (N, N) int64, judgments in which the odd one was the third item; symmetric, 0 on the diagonal.
    """

    shown: NDArray[np.int64]
    together: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """The distribution of choices over the three pairs of each distinct triplet.

    Args:
        triplets: (U, 3) int64 item rows (a, b, c), ascending within a row.
        shares: (U, 3) float64, shares of the judgments that left the pairs (ab, ac, bc) together: c, b, a the odd one.
            A row sums to one.
        counts: (U,) int64, judgments of the triplet.
    """

    triplets: NDArray[np.int64]
    shares: NDArray[np.float64]
    counts: NDArray[np.int64]


def pair_counts(judgments: Judgments) -> PairCounts:
    """Count, for every pair of items, the judgments that showed both and those that left both together.

    Args:
        judgments: T judgments over N items.

    Returns:
        Counts (N, N); each judgment adds to three pairs shown and to one pair together.
    """
    counts = triplet_counts(torch.from_numpy(judgments.triplets), len(judgments.items))
    return PairCounts(shown=counts.shown.numpy(), together=counts.together.numpy())


def dissimilarity(judgments: Judgments) -> NDArray[np.float64]:
    """The behavioural representational dissimilarity matrix: d(i, j) = 1 - together(i, j) / shown(i, j).

    The estimate of Garcia & Isik (arXiv 2510.01502): one minus the share of the judgments showing i and j that left
    them together. A pair never shown is unknown, neither alike nor unlike.

    Args:
        judgments: T judgments over N items.

    Returns:
        (N, N) float64 in 0..1, symmetric; NaN where a pair was never shown, 0 on the diagonal.
    """
    counts = pair_counts(judgments)
    with np.errstate(invalid="ignore"):
        distances = 1.0 - counts.together / counts.shown
    np.fill_diagonal(distances, 0.0)
    return distances


def soft_targets(judgments: Judgments) -> SoftTargets:
    """The observed choice distribution of each distinct triplet, as a target for the triplet softmax.

    Args:
        judgments: T judgments.

    Returns:
        U distinct triplets with the shares of their pairs (ab, ac, bc), and how many judgments a share rests on.
    """
    repeats = judgments.repeats
    counts = repeats.counts.sum(axis=1)
    return SoftTargets(triplets=repeats.triplets, shares=repeats.counts[:, ::-1] / counts[:, None], counts=counts)
