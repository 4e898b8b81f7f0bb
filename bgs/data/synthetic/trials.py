"""The design of the simulated experiment: which triplets are shown, how often, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

# As in the published data, where 24,096 judgments are of 18,000 triplets, 4,167 of them judged more than once.
DISTINCT_SHARE = 0.75
REPEATED_SHARE = 0.23


@dataclass(frozen=True)
class Trials:
    """Trials in the order they are run.

    Args:
        triplets: (T, 3) int64 item rows, in the order shown.
        participants: (T,) int64, who is shown each.
    """

    triplets: NDArray[np.int64]
    participants: NDArray[np.int64]


def draw_triplets(items: NDArray[np.int64], judgments: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw triplets among some items, part of them more than once.

    Args:
        items: (N,) item rows, at least 3.
        judgments: Number of judgments wanted.
        rng: Generator.

    Returns:
        (judgments, 3) int64 item rows, ascending within a row, repeats included.
    """
    ranks = _draw_ranks(comb(len(items), 3), judgments, rng)
    return np.sort(items[unrank_triplets(ranks)], axis=1)


def draw_mixed_triplets(
    train: NDArray[np.int64], test: NDArray[np.int64], judgments: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw triplets that have items of both splits, part of them more than once.

    Args:
        train: Item rows, at least 2.
        test: Item rows, at least 2, none of them in `train`.
        judgments: Number of judgments wanted.
        rng: Generator.

    Returns:
        (judgments, 3) int64 item rows, ascending within a row, repeats included.
    """
    one_of_test = comb(len(train), 2) * len(test)
    two_of_test = comb(len(test), 2) * len(train)
    ranks = _draw_ranks(one_of_test + two_of_test, judgments, rng)
    chosen = np.empty((judgments, 3), dtype=np.int64)
    for pairs, singles, rows, start in (
        (train, test, ranks < one_of_test, 0),
        (test, train, ranks >= one_of_test, one_of_test),
    ):
        pair, single = np.divmod(ranks[rows] - start, len(singles))
        chosen[rows] = np.column_stack([pairs[unrank_pairs(pair)], singles[single]])
    return np.sort(chosen, axis=1)


def unrank_pairs(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs that stand at some ranks in the combinatorial number system: 01, 02, 12, 03, 13, 23, 04 ...

    Args:
        ranks: (T,) integers from 0.

    Returns:
        (T, 2) int64, ascending within a row.
    """
    index = np.arange(_bound(ranks, 2), dtype=np.int64)
    smaller = index * (index - 1) // 2  # pairs of items below each
    last = np.searchsorted(smaller, ranks, side="right") - 1
    return np.column_stack([ranks - smaller[last], last])


def unrank_triplets(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the triplets that stand at some ranks in the combinatorial number system: 012, 013, 023, 123, 014 ...

    Args:
        ranks: (T,) integers from 0.

    Returns:
        (T, 3) int64, ascending within a row.
    """
    index = np.arange(_bound(ranks, 3), dtype=np.int64)
    smaller = index * (index - 1) * (index - 2) // 6  # triplets of items below each
    last = np.searchsorted(smaller, ranks, side="right") - 1
    return np.column_stack([unrank_pairs(ranks - smaller[last]), last])


def _bound(ranks: NDArray[np.int64], size: int) -> int:
    """Return a number of items that have more sets of `size` than any of the ranks."""
    items = size
    while comb(items, size) <= ranks.max(initial=0):
        items *= 2
    return items + 1


def _draw_ranks(possible: int, judgments: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw which of the possible sets are judged: a share of them more than once, if they suffice; else all alike."""
    distinct = min(possible, round(DISTINCT_SHARE * judgments) or judgments)
    chosen = rng.choice(possible, distinct, replace=False).astype(np.int64)
    surplus = judgments - distinct
    repeated = chosen[: round(REPEATED_SHARE * distinct)] if surplus < distinct else chosen
    once_more = repeated[:surplus]
    further = rng.choice(repeated, surplus - len(once_more)) if surplus > len(once_more) else chosen[:0]
    return np.concatenate([chosen, once_more, further])


def assign(triplets: NDArray[np.int64], participants: int, rng: np.random.Generator) -> Trials:
    """Give every trial to a participant, and put trials in the order they are run.

    Copies of a triplet go to different participants while there are enough of them. Loads differ by one at most.

    Args:
        triplets: (T, 3) int64, repeats included.
        participants: Number of participants.
        rng: Generator.

    Returns:
        The trials, with the three items of each in random order.
    """
    _, group = np.unique(triplets, axis=0, return_inverse=True)
    group = rng.permutation(group.max() + 1)[group.reshape(-1)]
    together = triplets[np.argsort(group, kind="stable")]  # copies stand next to each other, triplets in random order
    people = rng.permutation(participants)[np.arange(len(together)) % participants]
    return Trials(rng.permuted(together, axis=1), people)
