"""What people said, in memory: odd-one-out judgments over named items, and the data set they come with. Files are read
in `bgs.data.formats`; what follows from judgments is in `bgs.data.geometry`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bgs.data.cleaning import CleaningReport

SPLITS = ("train", "val", "test")

MOST_ITEMS = 1 << 21
"""Three item rows are packed into one int64 key, and 2**21 items fill its 63 bits."""


@dataclass(frozen=True, eq=False)
class Repeats:
    """The distinct triplets of a set of judgments, whatever the order of presentation, and how each was answered.

    Args:
        triplets: (U, 3) int64 item rows, ascending within a row; the rows in lexicographic order.
        counts: (U, 3) int64, how often the item at each position was chosen as the odd one.
        row: (T,) int64, the row of `triplets` that each judgment is about.
    """

    triplets: NDArray[np.int64]
    counts: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.triplets)


@dataclass(frozen=True, eq=False)
class Judgments:
    """Odd-one-out judgments: of three items shown, the one a participant chose as the odd one.

    A judgment that is given again, by the same participant or another, is data and is kept.

    Args:
        items: names of the N items; an item's place here is its row in an embedding matrix.
        triplets: (T, 3) integers in 0..N-1, three different items a row, the odd one last; stored as int64.
        participants: (T,) integers into `participant_names`, or None where the source names nobody; stored as int64.
        participant_names: names of the participants; those without a judgment left may remain.
        cleaning: what was read and dropped at the source; selecting judgments later leaves it as it was.

    Raises:
        ValueError: a shape, type, index or name that breaks the above, or more than `MOST_ITEMS` items; the message
            names the argument and the row.
    """

    items: tuple[str, ...]
    triplets: NDArray[np.int64]
    participants: NDArray[np.int64] | None = None
    participant_names: tuple[str, ...] = ()
    cleaning: CleaningReport = CleaningReport()

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        object.__setattr__(self, "participant_names", tuple(self.participant_names))
        object.__setattr__(self, "triplets", _integers("triplets", self.triplets))
        if len(self.items) > MOST_ITEMS:
            raise ValueError(f"items: {len(self.items)}, expected at most {MOST_ITEMS}")
        _check_names("items", self.items)
        _check_names("participant_names", self.participant_names)
        if self.triplets.ndim != 2 or self.triplets.shape[1] != 3:
            raise ValueError(f"triplets: shape {self.triplets.shape}, expected (T, 3)")
        _check_range("triplets", self.triplets, len(self.items), "items")
        first, second, third = self.triplets.T
        repeated = (first == second) | (first == third) | (second == third)
        if repeated.any():
            row = int(repeated.argmax())
            raise ValueError(f"triplets: {self.triplets[row].tolist()} repeats an item (row {row})")
        if self.participants is None:
            if self.participant_names:
                raise ValueError(f"participants: None, but {len(self.participant_names)} participant_names are given")
            return
        object.__setattr__(self, "participants", _integers("participants", self.participants))
        if self.participants.shape != (len(self),):
            raise ValueError(f"participants: shape {self.participants.shape}, expected ({len(self)},), one a judgment")
        _check_range("participants", self.participants, len(self.participant_names), "participant_names")

    def __len__(self) -> int:
        return len(self.triplets)

    def where(self, keep: ArrayLike) -> Judgments:
        """Some of the judgments, over the same items and participants.

        Args:
            keep: (T,) booleans, or any number of judgment rows (integers; one may occur several times).

        Returns:
            The judgments selected, in the order asked for.

        Raises:
            ValueError: a mask of another length, values that are neither booleans nor integers, or a row out of range.
        """
        chosen = np.asarray(keep)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise ValueError(f"keep: mask of shape {chosen.shape}, expected ({len(self)},), one a judgment")
        else:
            chosen = _rows("keep", chosen, len(self), "judgments")
        return replace(
            self,
            triplets=self.triplets[chosen],
            participants=None if self.participants is None else self.participants[chosen],
        )

    def among(self, items: ArrayLike, reindex: bool = False) -> Judgments:
        """The judgments about the given items alone: all three of a triplet are among them.

        Args:
            items: item rows, distinct integers.
            reindex: renumber, so that row n of the result's items is the n-th of `items`; otherwise the result keeps
                all items and their rows.

        Returns:
            The judgments selected, in their order here.

        Raises:
            ValueError: `items` is not made of distinct rows of this object's items.
        """
        rows = _rows("items", np.asarray(items), len(self.items), "items")
        place = np.full(len(self.items), -1)
        place[rows] = np.arange(len(rows))
        if len(rows) != np.count_nonzero(place >= 0):
            values, counts = np.unique(rows, return_counts=True)
            raise ValueError(f"items: row {values[counts.argmax()]} is given {counts.max()} times")
        inside = self.where((place >= 0)[self.triplets].all(axis=1))
        if not reindex:
            return inside
        return replace(inside, items=tuple(self.items[row] for row in rows), triplets=place[inside.triplets])

    @cached_property
    def repeats(self) -> Repeats:
        """The distinct triplets and how often each of their items was chosen as the odd one."""
        number = max(len(self.items), 1)
        ascending = np.sort(self.triplets, axis=1)
        odd = (ascending == self.triplets[:, 2:]).argmax(axis=1)
        first, second, third = ascending.T
        keys, row = np.unique((first * number + second) * number + third, return_inverse=True)
        counts = np.bincount(row * 3 + odd, minlength=3 * len(keys)).reshape(-1, 3)
        triplets = np.stack([keys // number**2, keys // number % number, keys % number], axis=1)
        return Repeats(triplets=triplets, counts=counts, row=row)


@dataclass(frozen=True, eq=False)
class Ratings:
    """Attributes of the items as people rated them.

    Args:
        names: R attribute names.
        values: (N, R) float64, rows aligned with the items; NaN where an item has no rating.

    Raises:
        ValueError: `values` does not have one column a name, or a name occurs twice.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        _check_names("names", self.names)
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise ValueError(f"values: shape {self.values.shape}, expected (N, {len(self.names)})")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Judgments with what the source says about the items.

    Args:
        judgments: the judgments, which also name the items.
        splits: item rows under "train", "val" and "test", as far as the source defines them; no item in two of them.
        captions: descriptions by item name, for the items that have any.
        ratings: attribute ratings, or None.
        folder: where the data set was read.

    Raises:
        ValueError: splits, captions or ratings do not fit the items.
    """

    judgments: Judgments
    splits: dict[str, NDArray[np.int64]]
    captions: dict[str, tuple[str, ...]]
    ratings: Ratings | None
    folder: Path

    def __post_init__(self) -> None:
        check_splits(self.splits, len(self.items))
        if unknown := self.captions.keys() - set(self.items):
            raise ValueError(f"captions: {min(unknown)!r} is not among the items")
        if self.ratings is not None and len(self.ratings.values) != len(self.items):
            raise ValueError(f"ratings: {len(self.ratings.values)} rows for {len(self.items)} items")

    @property
    def items(self) -> tuple[str, ...]:
        """Names of the items; an item's place here is its row in an embedding matrix."""
        return self.judgments.items


def check_splits(splits: Mapping[str, NDArray[np.int64]], items: int) -> None:
    """Check that splits are named train, val or test, hold item rows, and share none.

    Args:
        splits: item rows by name.
        items: number of items.

    Raises:
        ValueError: naming the split and the row that is wrong.
    """
    owner: dict[int, str] = {}
    for name, rows in splits.items():
        if name not in SPLITS:
            raise ValueError(f"splits: {name!r}, expected any of {', '.join(SPLITS)}")
        for row in _rows(name, np.asarray(rows), items, "items").tolist():
            if row in owner:
                raise ValueError(f"splits: item {row} is in {owner[row]} and again in {name}")
            owner[row] = name


def _integers(argument: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{argument}: {array.dtype} values, expected integers")
    return np.ascontiguousarray(array, dtype=np.int64)


def _rows(argument: str, values: NDArray[np.generic], size: int, what: str) -> NDArray[np.int64]:
    rows = _integers(argument, values)
    if rows.ndim != 1:
        raise ValueError(f"{argument}: shape {rows.shape}, expected one dimension")
    _check_range(argument, rows, size, what)
    return rows


def _check_range(argument: str, values: NDArray[np.int64], size: int, what: str) -> None:
    if values.size and (values.min() < 0 or values.max() >= size):
        row = int(np.argmax(((values < 0) | (values >= size)).reshape(len(values), -1).any(axis=1)))
        worst = next(value for value in values[row].ravel().tolist() if not 0 <= value < size)
        raise ValueError(f"{argument}: index {worst} out of range for {size} {what} (row {row})")


def _check_names(argument: str, names: Sequence[str]) -> None:
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{argument}: {name!r} occurs more than once")
        seen.add(name)
