"""Reading delimited text so that whatever is wrong with it can be named: file, row and column. Rows are counted as an
editor counts lines, the header being row 1.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bgs.data.cleaning import MISSING

_EMPTY = frozenset({"", "na", "n/a", "nan", "none", "null"})
_DELIMITERS = (",", "\t", ";")
# An integer, also as a float without a fraction: tables with gaps are often saved with their integers as floats.
_INTEGER = re.compile(r"([+-]?[0-9]+)(\.0*)?")


@dataclass(frozen=True, eq=False)
class Table:
    """Some columns of a file, as text.

    Args:
        path: the file.
        columns: cells by column name, stripped of white space; a row that is shorter than the header has empty cells.
        lines: line of the file on which each row starts.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    def error(self, row: int, column: str, problem: str) -> ValueError:
        """An error about one cell, to raise: file, row, column, the cell, and what is wrong with it."""
        cell = self.columns[column][row]
        return ValueError(f"{self.path}: row {self.lines[row]}, column {column!r}: {cell!r}, {problem}")

    def encode(self, column: str, code: Callable[[str], int], *, required: bool = False) -> NDArray[np.int64]:
        """Turn a column into integers.

        Args:
            column: its name.
            code: gives the integer of a cell, or raises a ValueError that says what was expected; asked once for each
                distinct cell, in order of appearance.
            required: an empty cell is an error; otherwise it becomes `MISSING`.

        Returns:
            (R,) int64.

        Raises:
            ValueError: naming file, row and column of the first cell that `code` refuses.
        """
        cells = self.columns[column]
        codes: dict[str, int] = {}
        for cell in dict.fromkeys(cells):
            if is_empty(cell) and not required:
                codes[cell] = MISSING
                continue
            try:
                codes[cell] = code(cell)
            except ValueError as problem:
                raise self.error(cells.index(cell), column, str(problem)) from None
        return np.fromiter(map(codes.__getitem__, cells), dtype=np.int64, count=len(cells))

    def check_distinct(self, column: str, keys: Iterable[Hashable]) -> None:
        """Check that no key comes twice.

        Args:
            column: the column to name in the error.
            keys: one a row.

        Raises:
            ValueError: naming the second row with the same key, and the first.
        """
        first: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            if first.setdefault(key, row) != row:
                raise self.error(row, column, f"which row {self.lines[first[key]]} has already")


def is_empty(cell: str) -> bool:
    """Whether a cell holds no value: nothing, or a usual mark for nothing such as NA or NaN."""
    return cell.lower() in _EMPTY


def as_integer(cell: str) -> int:
    """The integer in a cell, also where it is written as 30.0.

    Raises:
        ValueError: the cell holds none.
    """
    if match := _INTEGER.fullmatch(cell):
        return int(match[1])
    raise ValueError("expected an integer")


def read_header(path: Path) -> tuple[str, ...]:
    """The column names of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or not UTF-8 text.
    """
    _, header = next(_records(path))
    return tuple(column.strip() for column in header)


def read_table(path: Path, columns: Sequence[str]) -> Table:
    """Read some columns of a file delimited by commas, tabs or semicolons; blank lines are skipped.

    Args:
        path: a UTF-8 text file with a header, with or without a byte-order mark.
        columns: names of the columns to read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the column that is missing or doubled, or the row that is broken.
    """
    records = _records(path)
    _, record = next(records)
    header = [column.strip() for column in record]
    places = [_place(path, header, column) for column in columns]
    cells: list[list[str]] = [[] for _ in columns]
    lines = array("q")
    # One string object per distinct cell: a file of millions of judgments repeats a few thousand names.
    shared: dict[str, str] = {}
    for line, record in records:
        if len(record) > len(header):
            raise ValueError(f"{path}: row {line} has {len(record)} cells, the header has {len(header)}")
        lines.append(line)
        for place, column_cells in zip(places, cells, strict=True):
            cell = record[place] if place < len(record) else ""
            column_cells.append(shared.setdefault(cell, cell.strip()))
    return Table(path=path, columns=dict(zip(columns, cells, strict=True)), lines=lines)


def _place(path: Path, header: Sequence[str], column: str) -> int:
    if header.count(column) != 1:
        many = "more than one" if column in header else "no"
        raise ValueError(f"{path}: {many} column {column!r}; its columns are {', '.join(map(repr, header))}")
    return header.index(column)


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The header and then the rows of a file, each with the line it starts on."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
            file.seek(0)
            if not first.strip():
                raise ValueError(f"{path}: row 1 is empty, expected a header")
            reader = csv.reader(file, delimiter=max(_DELIMITERS, key=first.count), strict=True)
            line = 1
            for record in reader:
                if record:
                    yield line, record
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error})") from None
        except csv.Error as error:
            raise ValueError(f"{path}: row {line} is broken ({error})") from None
