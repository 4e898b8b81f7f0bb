"""Judgments in a table of any origin: three columns name the items of a trial, one the choice, one perhaps the
participant.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bgs.data.cleaning import MISSING, NOT_SHOWN, CleaningReport, clean
from bgs.data.formats.tables import Table, as_integer, is_empty, read_header, read_table
from bgs.data.formats.writing import replacing
from bgs.data.judgments import Judgments

ChoiceIs = Literal["item", "position"]

_CHOICE_NAMES = ("choice", "odd_one_out", "odd_one", "odd", "ooo", "response", "answer")
_PARTICIPANT_NAMES = (
    "participant",
    "participant_id",
    "participation",
    "subject",
    "subject_id",
    "worker",
    "worker_id",
    "workerid",
    "user",
    "user_id",
)


class Columns(NamedTuple):
    """The columns that hold judgments; `participant` is None where nobody is named."""

    items: tuple[str, str, str]
    choice: str
    participant: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns to read."""
        return (*self.items, self.choice) + (() if self.participant is None else (self.participant,))


def find_columns(
    path: Path,
    *,
    items: Sequence[str] | None = None,
    choice: str | None = None,
    participant: str | None = None,
) -> Columns:
    """Find the columns that hold judgments; a name that is given is taken as it is.

    Item columns are three whose names differ in one digit alone (1, 2, 3 or 0, 1, 2), as stim1_name, stim2_name,
    stim3_name. Choice and participant go by usual names in any case, as choice, odd, response; participant, subject,
    worker.

    Args:
        path: a delimited text file with a header.
        items: names of the three item columns.
        choice: name of the choice column.
        participant: name of the participant column.

    Raises:
        ValueError: a name that is not given cannot be told from the header; the message lists the columns there are.
    """
    header = read_header(path)
    if items is not None and (isinstance(items, str) or len(items) != 3):
        raise ValueError(f"items: {items!r}, expected the names of three columns")
    listed = ", ".join(map(repr, header))
    if items is None:
        triples = _numbered_triples(header)
        if len(triples) != 1:
            found = f"{len(triples)} sets of three numbered columns" if triples else "no three numbered columns"
            raise ValueError(f"{path}: {found} among {listed}; name the three item columns (items)")
        items = triples[0]
    if choice is None:
        choices = [name for name in header if name.lower() in _CHOICE_NAMES]
        if len(choices) != 1:
            raise ValueError(
                f"{path}: {len(choices) or 'no'} columns look like the choice among {listed}; name its column (choice)"
            )
        choice = choices[0]
    if participant is None:
        participants = [name for name in header if name.lower() in _PARTICIPANT_NAMES]
        if len(participants) > 1:
            raise ValueError(
                f"{path}: {', '.join(map(repr, participants))} all look like the participant; "
                "name its column (participant)"
            )
        participant = participants[0] if participants else None
    first, second, third = items
    return Columns((first, second, third), choice, participant)


def read_delimited(
    path: Path,
    *,
    items: Sequence[str] | None = None,
    choice: str | None = None,
    participant: str | None = None,
    choice_is: ChoiceIs | None = None,
    one_indexed: bool | None = None,
) -> Judgments:
    """Read judgments from a table.

    The items are the distinct values of the item columns, in numerical order if all are integers and in alphabetical
    order otherwise.

    Args:
        path: a file delimited by commas, tabs or semicolons, with a header.
        items: names of the three item columns; None: see `find_columns`.
        choice: name of the choice column; None: see `find_columns`.
        participant: name of the participant column; None: see `find_columns`.
        choice_is: whether the choice holds the item itself or its position among the three; None: whichever explains
            the column, if only one does.
        one_indexed: whether positions are counted from 1 or from 0; None: 1 if 3 occurs and 0 does not, 0 if 0 occurs
            and 3 does not.

    Returns:
        The judgments; rows that are no judgment are dropped and counted.

    Raises:
        ValueError: naming what cannot be told and the argument that tells it, or the row and column that is broken.
    """
    columns = find_columns(path, items=items, choice=choice, participant=participant)
    table = read_table(path, columns.names)
    names = _item_names(table, columns)
    row_of = {name: row for row, name in enumerate(names)}
    shown = np.stack([table.encode(column, lambda cell: row_of[_plain(cell)]) for column in columns.items], axis=1)

    by_item = table.encode(columns.choice, lambda cell: row_of.get(_plain(cell), NOT_SHOWN))
    if choice_is is None:
        choice_is = _tell_choice(table, columns.choice, shown, by_item)
    if choice_is == "item":
        if one_indexed is not None:
            raise ValueError(f"one_indexed: {one_indexed}, but {path} names the chosen item, not its position")
        chosen = by_item
    elif choice_is == "position":
        chosen = _by_position(table, columns.choice, shown, one_indexed)
    else:
        raise ValueError(f"choice_is: {choice_is!r}, expected 'item' or 'position'")
    people: dict[str, int] = {}
    triplets, participants, report = clean_table(table, columns, shown, chosen, people)
    return Judgments(names, triplets, participants, tuple(people), report)


def clean_table(
    table: Table, columns: Columns, shown: NDArray[np.int64], chosen: NDArray[np.int64], people: dict[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, CleaningReport]:
    """Drop and count the rows of a table that are no judgment; a row that names no participant lacks a value.

    Args:
        table: the table.
        columns: where its judgments are.
        shown: (R, 3) item rows as presented, as `clean` takes them.
        chosen: (R,) item row of the odd one, as `clean` takes it.
        people: number of each participant so far, by name; those new in this table are added.

    Returns:
        triplets (K, 3) with the odd one last, their participants (K,) or None, and the report.
    """
    if columns.participant is None:
        triplets, _, report = clean(shown, chosen)
        return triplets, None, report
    participants = table.encode(columns.participant, lambda name: people.setdefault(name, len(people)))
    triplets, keep, report = clean(shown, chosen, unusable=participants == MISSING)
    return triplets, participants[keep], report


def write_csv(judgments: Judgments, path: Path) -> None:
    """Write judgments as a table that `read_delimited` reads: item1, item2, item3, choice (by name), participant.

    Args:
        judgments: the judgments; items that none is about leave no trace.
        path: file to write or replace.
    """
    triplets = np.array(judgments.items, dtype=object)[judgments.triplets]
    columns = [*triplets.T, triplets[:, 2]]
    header = ["item1", "item2", "item3", "choice"]
    if judgments.participants is not None:
        columns.append(np.array(judgments.participant_names, dtype=object)[judgments.participants])
        header.append("participant")
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))


def _numbered_triples(header: Sequence[str]) -> list[tuple[str, str, str]]:
    """All sets of three column names that differ in one digit alone, which is 1, 2, 3 or 0, 1, 2."""
    by_frame: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in header:
        for digit in re.finditer(r"(?<![0-9])[0-9](?![0-9])", name):
            by_frame[name[: digit.start()], name[digit.end() :]][digit[0]] = name
    return [
        (names[first], names[second], names[third])
        for names in by_frame.values()
        for first, second, third in ("123", "012")
        if set(names) == {first, second, third}
    ]


def _plain(cell: str) -> str:
    """A cell as an item name: 30.0 and 30 are the same item in a table where gaps turned integers into floats."""
    return re.sub(r"^([0-9]+)\.0+$", r"\1", cell)


def _item_names(table: Table, columns: Columns) -> tuple[str, ...]:
    cells = set().union(*(table.columns[column] for column in columns.items))
    names = {_plain(cell) for cell in cells if not is_empty(cell)}
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _tell_choice(table: Table, column: str, shown: NDArray[np.int64], by_item: NDArray[np.int64]) -> ChoiceIs:
    complete = (by_item != MISSING) & (shown != MISSING).all(axis=1)
    if not complete.any():
        return "item"
    # Items by number can hit a position by chance, and a few broken rows hide neither reading: most rows must agree.
    items = (shown == by_item[:, None]).any(axis=1)[complete].mean() > 0.5
    choices = {_plain(cell) for cell in set(table.columns[column]) if not is_empty(cell)}
    positions = choices <= {"0", "1", "2", "3"}
    if items != positions:
        return "item" if items else "position"
    how = "both the items of most rows and positions" if items else "neither the items of most rows nor positions 0-3"
    raise ValueError(f"{table.path}: column {column!r} holds {how}; say which with choice_is='item' or 'position'")


def _by_position(table: Table, column: str, shown: NDArray[np.int64], one_indexed: bool | None) -> NDArray[np.int64]:
    def position(cell: str) -> int:
        number = as_integer(cell)
        return number if 0 <= number <= 3 else NOT_SHOWN

    positions = table.encode(column, position)
    if one_indexed is None:
        from_zero, from_one = bool((positions == 0).any()), bool((positions == 3).any())
        if from_zero == from_one:
            which = "both 0 and 3" if from_zero else "neither 0 nor 3"
            raise ValueError(
                f"{table.path}: column {column!r} holds positions with {which} among them; "
                "say whether numbering starts at 1 (one_indexed)"
            )
        one_indexed = from_one
    places = positions - int(one_indexed)
    valid = (positions >= 0) & (places >= 0) & (places <= 2)
    chosen = np.where(positions == MISSING, MISSING, NOT_SHOWN)
    chosen[valid] = shown[valid, places[valid]]
    return chosen
