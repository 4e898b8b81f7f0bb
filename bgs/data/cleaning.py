"""Which rows of a judgment file are usable. Every reader passes its rows through here, so that a reason for dropping a
row means the same in every format and is always counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MISSING_VALUE = "missing value"
REPEATED_ITEM = "repeated item"
CHOICE_NOT_SHOWN = "choice not among the three"

MISSING = -1
"""Code of an empty cell."""
NOT_SHOWN = -2
"""Code of a choice that names no item of the file at all."""

# Row p reorders a triplet so that the item at position p comes last and the other two keep their order.
_ODD_ONE_LAST = np.array([[1, 2, 0], [0, 2, 1], [0, 1, 2]])


@dataclass(frozen=True)
class CleaningReport:
    """How many rows of a source were read, kept, and dropped for which reason.

    Args:
        rows_read: rows of the file or files, headers not counted; 0 for judgments made in memory.
        kept: rows that became judgments.
        dropped: rows dropped, by reason.

    Raises:
        ValueError: the rows kept and dropped are not the rows read.
    """

    rows_read: int = 0
    kept: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kept + sum(self.dropped.values()) != self.rows_read:
            raise ValueError(
                f"cleaning: {self.rows_read} rows read, but {self.kept} kept and {dict(self.dropped)} dropped"
            )

    def __add__(self, other: CleaningReport) -> CleaningReport:
        reasons = [*self.dropped, *(reason for reason in other.dropped if reason not in self.dropped)]
        return CleaningReport(
            rows_read=self.rows_read + other.rows_read,
            kept=self.kept + other.kept,
            dropped={reason: self.dropped.get(reason, 0) + other.dropped.get(reason, 0) for reason in reasons},
        )

    def __str__(self) -> str:
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.items()) or "nothing"
        return f"{self.rows_read:,} rows read, {self.kept:,} kept; dropped: {dropped}"


def clean(
    shown: NDArray[np.int64], chosen: NDArray[np.int64], unusable: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.bool_], CleaningReport]:
    """Drop the rows that are no odd-one-out judgment and put the odd one last in the others.

    A row with several faults is counted once, under the first of: missing value, repeated item, choice not among the
    three.

    Args:
        shown: (R, 3) item rows as presented; `MISSING` where a cell was empty.
        chosen: (R,) item row of the odd one; `MISSING` where the cell was empty, `NOT_SHOWN` where it names no item.
        unusable: (R,) rows to drop for a missing value elsewhere, as in a participant column.

    Returns:
        triplets (K, 3) with the odd one last, the mask (R,) of the rows kept, and the report.
    """
    missing = (shown == MISSING).any(axis=1) | (chosen == MISSING)
    if unusable is not None:
        missing |= unusable
    first, second, third = shown.T
    repeated = ~missing & ((first == second) | (first == third) | (second == third))
    place = shown == chosen[:, None]
    stray = ~missing & ~repeated & ~place.any(axis=1)

    keep = ~(missing | repeated | stray)
    triplets = np.take_along_axis(shown[keep], _ODD_ONE_LAST[place[keep].argmax(axis=1)], axis=1)
    counts = {MISSING_VALUE: missing, REPEATED_ITEM: repeated, CHOICE_NOT_SHOWN: stray}
    dropped = {reason: int(rows.sum()) for reason, rows in counts.items() if rows.any()}
    return triplets, keep, CleaningReport(rows_read=len(shown), kept=len(triplets), dropped=dropped)
