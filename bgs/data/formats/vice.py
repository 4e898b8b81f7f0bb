"""Judgments as SPoSE, VICE and THINGS keep them: N x 3 integers in `.npy` or `.txt`, the odd one last. The items are
numbers; their names, where known, are in a file beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgs.data.cleaning import MISSING, clean
from bgs.data.formats.tables import read_table
from bgs.data.formats.writing import replacing
from bgs.data.judgments import MOST_ITEMS, Judgments

NAME_FILES = ("item_names.txt", "item_names.tsv", "unique_id.txt")
"""Files of item names looked for beside the judgments: one name a line, or in .tsv a column uniqueID as in THINGS."""


def read_vice(path: Path, *, names: Path | Sequence[str] | None = None, one_indexed: bool | None = None) -> Judgments:
    """Read judgments that are rows of three item numbers, the odd one last.

    Args:
        path: a `.npy` file of an (N, 3) array of integers, or a `.txt` file of three a line, divided by white space or
            commas. Floats without a fraction will do, and NaN is a missing value.
        names: the item names in the order of their numbers, or the file that holds them; None: the first of
            `NAME_FILES` beside `path`, and if there is none, every number up to the highest is an item of that name.
        one_indexed: whether the first item has number 1 or 0; None: 0 if a 0 occurs, 1 if none does and the highest
            number is the number of names.

    Returns:
        The judgments, without participants; rows that are no judgment are dropped and counted.

    Raises:
        FileNotFoundError: `path` or the file `names` is not there.
        ValueError: naming the row (of a .txt the line) and column of a number that cannot be right, or saying that the
            number of the first item cannot be told.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    shown = _item_numbers(path, _read_npy(path) if path.suffix == ".npy" else _read_txt(path))
    if names is None:
        names = next(filter(Path.is_file, map(path.with_name, NAME_FILES)), None)
    known = _read_names(names) if isinstance(names, Path) else None if names is None else tuple(names)

    present = shown != MISSING
    lowest, highest = int(shown.min(where=present, initial=MOST_ITEMS)), int(shown.max(initial=MISSING))
    first = int(_tells_one(path, lowest, highest, known) if one_indexed is None else one_indexed)
    if known is None:
        known = tuple(str(number) for number in range(first, highest + 1))
    last = first + len(known) - 1
    if lowest < first or highest > last:
        source = f" of {names}" if isinstance(names, Path) else ""
        expected = f"expected {first}..{last}, the numbers of {len(known)} items{source}"
        _require(path, shown, ~present | ((shown >= first) & (shown <= last)), expected)
    if first:
        shown = np.where(present, shown - first, MISSING)
    triplets, _, report = clean(shown, shown[:, 2])
    return Judgments(known, triplets, cleaning=report)


def write_vice(judgments: Judgments, path: Path) -> None:
    """Write judgments as rows of three item numbers from 0, the odd one last, with the item names beside.

    Args:
        judgments: the judgments; participants are not written.
        path: `.npy` or `.txt` file to write or replace. The names go to item_names.txt in the same folder, where files
            of judgments about the same items share them.

    Raises:
        ValueError: another suffix, a name with a line break, or an item_names.txt that holds other names.
    """
    if path.suffix not in (".npy", ".txt"):
        raise ValueError(f"{path}: suffix {path.suffix!r}, expected .npy or .txt")
    for name in judgments.items:
        if name != name.strip() or not name or "\n" in name:
            raise ValueError(f"items: {name!r} cannot be a line of {NAME_FILES[0]}")
    names = path.with_name(NAME_FILES[0])
    if names.is_file() and _read_names(names) != judgments.items:
        raise ValueError(f"{names}: holds the names of other items; write {path.name} to another folder")
    with replacing(names) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in judgments.items), encoding="utf-8")
    with replacing(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".npy":
            np.save(file, judgments.triplets, allow_pickle=False)
        else:
            np.savetxt(file, judgments.triplets, fmt="%d")


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not an array of numbers; pickled objects are never loaded ({error})") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path}: an archive of arrays, expected one array (N, 3)")
    return array


def _read_txt(path: Path) -> NDArray[np.float64]:
    first = next(_lines(path), None)
    if first is None:
        return np.empty((0, 3))
    try:
        return np.loadtxt(path, delimiter="," if "," in first[1] else None, ndmin=2, encoding="utf-8-sig")
    except ValueError as error:
        for line, text in _lines(path):
            cells = text.replace(",", " ").split()
            if len(cells) != 3:
                raise ValueError(f"{path}: row {line} has {len(cells)} values, expected 3 item numbers") from None
            for column, cell in enumerate(cells, start=1):
                if not _is_number(cell):
                    place = f"{path}: row {line}, column {column}"
                    raise ValueError(f"{place}: {cell!r}, expected an item number") from None
        raise ValueError(f"{path}: {error}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that hold something besides a comment, numbered from 1 over all lines."""
    with path.open(encoding="utf-8-sig") as file:
        try:
            for line, text in enumerate(file, start=1):
                if content := text.partition("#")[0].strip():
                    yield line, content
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error})") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _item_numbers(path: Path, numbers: NDArray[Any]) -> NDArray[np.int64]:
    """The numbers as int64, `MISSING` where there is none."""
    if numbers.ndim != 2 or numbers.shape[1] != 3 or numbers.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {numbers.dtype} array of shape {numbers.shape}, expected integers (N, 3)")
    missing = np.isnan(numbers)
    fit = (numbers >= 0) & (numbers <= MOST_ITEMS)
    if numbers.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            fit &= numbers % 1 == 0
    _require(path, numbers, missing | fit, f"expected an item number, 0..{MOST_ITEMS}")
    return np.where(missing, MISSING, numbers).astype(np.int64, copy=False)


def _require(path: Path, numbers: NDArray[Any], fit: NDArray[np.bool_], expected: str) -> None:
    if fit.all():
        return
    row, column = divmod(int(fit.argmin()), 3)
    line = row + 1
    if path.suffix == ".txt":
        line = next(line for index, (line, _) in enumerate(_lines(path)) if index == row)
    raise ValueError(f"{path}: row {line}, column {column + 1}: {numbers[row, column]}, {expected}")


def _tells_one(path: Path, lowest: int, highest: int, known: Sequence[str] | None) -> bool:
    if lowest == 0 or highest == MISSING:
        return False
    if known is not None and highest == len(known):
        return True
    raise ValueError(f"{path}: the lowest item number is {lowest}, so say whether numbering starts at 1 (one_indexed)")


def _read_names(path: Path) -> tuple[str, ...]:
    if path.suffix == ".tsv":
        table = read_table(path, ("uniqueID",))
        table.check_distinct("uniqueID", table.columns["uniqueID"])
        return tuple(table.columns["uniqueID"])
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    names: dict[str, int] = {}
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        name = text.strip()
        if name and names.setdefault(name, line) != line:
            raise ValueError(f"{path}: row {line}: {name!r}, which row {names[name]} has already")
    return tuple(names)
