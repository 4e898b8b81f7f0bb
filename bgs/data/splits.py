"""Which items are trained on and which are held out. Splits are made over items: a judgment belongs to a split only if
all three of its items do, so that no held-out item was ever seen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bgs.data.judgments import SPLITS, Dataset, Judgments, check_splits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitCounts:
    """How judgments fall to splits.

    Args:
        items: items in each split.
        within: judgments all of whose items are in the split.
        crossing: judgments that no split can use, because their items are not all in one.
    """

    items: dict[str, int]
    within: dict[str, int]
    crossing: int

    def __str__(self) -> str:
        parts = [f"{name} {self.items[name]:,} items, {self.within[name]:,} judgments" for name in self.items]
        return "; ".join([*parts, f"{self.crossing:,} judgments cross splits"])


def split_items(items: int, *, val: float = 0.2, test: float = 0.2, seed: int) -> dict[str, NDArray[np.int64]]:
    """Divide items at random into train, val and test.

    Args:
        items: number of items.
        val: share of the items, in [0, 1); rounded to whole items.
        test: the same.
        seed: of NumPy's PCG64; the same seed gives the same splits on every machine.

    Returns:
        Ascending item rows under "train", and under "val" and "test" where their share is not 0; together all items.

    Raises:
        ValueError: a share out of range or too small for one item, or no item left to train on.
    """
    for name, share in (("val", val), ("test", test)):
        if not 0 <= share < 1:
            raise ValueError(f"{name}: share {share}, expected at least 0 and less than 1")
        if share > 0 and round(share * items) == 0:
            raise ValueError(f"{name}: a share of {share} of {items} items is not one item")
    held_out = {name: round(share * items) for name, share in (("val", val), ("test", test)) if share > 0}
    if sum(held_out.values()) >= items:
        raise ValueError(f"val and test: shares {val} and {test} of {items} items leave none to train on")
    order = _generator(seed).permutation(items)
    splits = {"train": np.sort(order[sum(held_out.values()) :])}
    start = 0
    for name, size in held_out.items():
        splits[name] = np.sort(order[start : start + size])
        start += size
    return splits


def folds(items: ArrayLike, k: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Divide items at random into k folds for cross-validation over items.

    Args:
        items: item rows, distinct integers.
        k: number of folds, 2 to the number of items; sizes differ by at most one.
        seed: of NumPy's PCG64.

    Returns:
        k pairs (rows to train on, rows held out), each ascending; every item is held out exactly once.

    Raises:
        ValueError: `k` out of range, or `items` is not a list of distinct integers.
    """
    rows = np.asarray(items)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(np.unique(rows)) != len(rows):
        raise ValueError(f"items: {rows.dtype} array of shape {rows.shape}, expected a list of distinct item rows")
    if not 2 <= k <= len(rows):
        raise ValueError(f"k: {k} folds of {len(rows)} items, expected 2 to {len(rows)}")
    held_out = [np.sort(part) for part in np.array_split(_generator(seed).permutation(rows.astype(np.int64)), k)]
    return [(np.setdiff1d(rows, part), part) for part in held_out]


def resolve_splits(
    dataset: Dataset, *, val_share: float = 0.2, test_share: float = 0.2, seed: int
) -> dict[str, NDArray[np.int64]]:
    """The splits a data set defines, with those it lacks carved out of its training items.

    Where the source names no training items, they are all the items outside its val and test.

    Args:
        dataset: items, judgments, and the splits of the source.
        val_share: share of the training items that become val, where the source defines none; 0 for no val.
        test_share: the same for test.
        seed: of NumPy's PCG64.

    Returns:
        Ascending item rows under "train", "val" and "test"; those with share 0 are absent.

    Raises:
        ValueError: as `split_items`.
    """
    defined = dict(dataset.splits)
    train = defined.pop("train", None)
    if train is None:
        unclaimed = np.ones(len(dataset.items), dtype=bool)
        for rows in defined.values():
            unclaimed[rows] = False
        train = np.flatnonzero(unclaimed)
    carved = split_items(
        len(train),
        val=0.0 if "val" in defined else val_share,
        test=0.0 if "test" in defined else test_share,
        seed=seed,
    )
    found = {name: train[rows] for name, rows in carved.items()} | defined
    splits = {name: np.sort(found[name]) for name in SPLITS if name in found}
    logger.info("splits: %s", count_judgments(dataset.judgments, splits))
    return splits


def count_judgments(judgments: Judgments, splits: Mapping[str, NDArray[np.int64]]) -> SplitCounts:
    """Count the judgments within each split and those lost between them.

    Args:
        judgments: T judgments over N items.
        splits: item rows by name, none in two splits.

    Returns:
        The counts; a judgment with an item in no split counts as crossing.

    Raises:
        ValueError: the splits overlap or hold rows that are no items.
    """
    check_splits(splits, len(judgments.items))
    label = np.full(len(judgments.items), -1)
    for number, rows in enumerate(splits.values()):
        label[rows] = number
    first, second, third = label[judgments.triplets].T
    common = np.where((first == second) & (first == third), first, -1)
    within = {name: int((common == number).sum()) for number, name in enumerate(splits)}
    return SplitCounts(
        items={name: len(rows) for name, rows in splits.items()},
        within=within,
        crossing=len(judgments) - sum(within.values()),
    )


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
