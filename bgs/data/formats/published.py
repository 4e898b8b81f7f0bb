"""The layout in which Garcia & Isik (arXiv 2510.01502) publish their data: a folder with `raw/utils` (items, splits,
captions, ratings) and `interim/similarity` (judgments). In its judgments an item is its index in video_mapping.csv.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bgs.data.cleaning import CleaningReport
from bgs.data.formats.delimited import clean_table, find_columns
from bgs.data.formats.tables import as_integer, is_empty, read_header, read_table
from bgs.data.judgments import SPLITS, Dataset, Judgments, Ratings

MAPPING = Path("raw/utils/video_mapping.csv")
_UTILS = Path("raw/utils")
_SIMILARITY = Path("interim/similarity")
# The judgments by split; the file of all judgments is what they were made from and would count each a second time.
_SPLIT_TRIPLETS = ("train_triplets.csv", "val_triplets.csv", "test_triplets.csv", "mixed_triplets.csv")
_ALL_TRIPLETS = "all_triplets.csv"
_RATING_PREFIX = "rating-"


def read_published(
    folder: Path,
    *,
    items: Sequence[str] | None = None,
    choice: str | None = None,
    participant: str | None = None,
) -> Dataset:
    """Read a data set in the published layout.

    Needed are `raw/utils/video_mapping.csv` and at least one file of judgments in `interim/similarity`: any of
    {train,val,test,mixed}_triplets.csv, or where none is there all_triplets.csv. `raw/utils/{train,val,test}.csv`,
    captions.csv and annotations.csv are read where present.

    Args:
        folder: the folder that holds `raw/utils` and `interim/similarity`.
        items: names of the item columns of the judgments; None: found, as stim1_name, stim2_name, stim3_name.
        choice: name of the choice column; None: found, as choice.
        participant: name of the participant column; None: found, as participation.

    Raises:
        FileNotFoundError: naming the file that is needed and is not there.
        ValueError: naming file, row and column of a value that cannot be right: no integer where an index is expected,
            an index or name of no known item, the same thing twice.
    """
    names = _read_items(folder / MAPPING)
    row_of = {name: row for row, name in enumerate(names)}
    files = [folder / _SIMILARITY / name for name in _SPLIT_TRIPLETS]
    files = [path for path in files if path.is_file()] or [folder / _SIMILARITY / _ALL_TRIPLETS]
    if not files[0].is_file():
        expected = ", ".join([*_SPLIT_TRIPLETS, _ALL_TRIPLETS])
        raise FileNotFoundError(f"{folder / _SIMILARITY}: no judgments; expected any of {expected}")
    judgments = _read_judgments(files, names, items=items, choice=choice, participant=participant)

    splits = {split: folder / _UTILS / f"{split}.csv" for split in SPLITS}
    captions, ratings = folder / _UTILS / "captions.csv", folder / _UTILS / "annotations.csv"
    return Dataset(
        judgments=judgments,
        splits=_read_splits({split: path for split, path in splits.items() if path.is_file()}, row_of),
        captions=_read_captions(captions, row_of) if captions.is_file() else {},
        ratings=_read_ratings(ratings, row_of) if ratings.is_file() else None,
        folder=folder,
    )


def _read_items(path: Path) -> tuple[str, ...]:
    table = read_table(path, ("index", "video_name"))

    def index(cell: str) -> int:
        row = as_integer(cell)
        if not 0 <= row < len(table):
            raise ValueError(f"expected each of 0..{len(table) - 1} once, as there are {len(table)} items")
        return row

    rows = table.encode("index", index, required=True)
    table.check_distinct("index", rows.tolist())
    names = table.columns["video_name"]
    if "" in names:
        raise table.error(names.index(""), "video_name", "expected a name")
    table.check_distinct("video_name", names)
    return tuple(names[line] for line in np.argsort(rows).tolist())


def _read_judgments(
    files: Sequence[Path],
    names: tuple[str, ...],
    *,
    items: Sequence[str] | None,
    choice: str | None,
    participant: str | None,
) -> Judgments:
    def index(cell: str) -> int:
        row = as_integer(cell)
        if not 0 <= row < len(names):
            raise ValueError(f"expected an index 0..{len(names) - 1} of {MAPPING.name}")
        return row

    columns = find_columns(files[0], items=items, choice=choice, participant=participant)
    people: dict[str, int] = {}
    triplets, participants, report = [], [], CleaningReport()
    for path in files:
        table = read_table(path, columns.names)
        shown = np.stack([table.encode(column, index) for column in columns.items], axis=1)
        chosen = table.encode(columns.choice, index)
        clean_triplets, clean_participants, clean_report = clean_table(table, columns, shown, chosen, people)
        triplets.append(clean_triplets)
        if clean_participants is not None:
            participants.append(clean_participants)
        report += clean_report
    return Judgments(
        items=names,
        triplets=np.concatenate(triplets),
        participants=np.concatenate(participants) if participants else None,
        participant_names=tuple(people),
        cleaning=report,
    )


def _read_splits(files: Mapping[str, Path], row_of: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    splits: dict[str, NDArray[np.int64]] = {}
    owner: dict[int, str] = {}
    for split, path in files.items():
        table = read_table(path, ("video_name",))
        rows = table.encode("video_name", _row_by_name(row_of), required=True)
        table.check_distinct("video_name", rows.tolist())
        for line, row in enumerate(rows.tolist()):
            if owner.setdefault(row, split) != split:
                raise table.error(line, "video_name", f"which is in {files[owner[row]].name} too")
        splits[split] = np.sort(rows)
    return splits


def _read_captions(path: Path, row_of: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    table = read_table(path, ("video_name", "caption_index", "caption"))
    rows = table.encode("video_name", _row_by_name(row_of), required=True).tolist()
    order = table.encode("caption_index", as_integer, required=True).tolist()
    table.check_distinct("caption_index", zip(rows, order, strict=True))
    captions: dict[str, list[str]] = defaultdict(list)
    for line in sorted(range(len(table)), key=lambda line: (rows[line], order[line])):
        caption = table.columns["caption"][line]
        if not caption:
            raise table.error(line, "caption", "expected a caption")
        captions[table.columns["video_name"][line]].append(caption)
    return {name: tuple(texts) for name, texts in captions.items()}


def _read_ratings(path: Path, row_of: Mapping[str, int]) -> Ratings:
    columns = [column for column in read_header(path) if column.startswith(_RATING_PREFIX)]
    table = read_table(path, ("video_name", *columns))
    rows = table.encode("video_name", _row_by_name(row_of), required=True)
    table.check_distinct("video_name", rows.tolist())
    values = np.full((len(row_of), len(columns)), np.nan)
    for number, column in enumerate(columns):
        for line, cell in enumerate(table.columns[column]):
            if is_empty(cell):
                continue
            try:
                values[rows[line], number] = float(cell)
            except ValueError:
                raise table.error(line, column, "expected a number or nothing") from None
    return Ratings(names=tuple(column.removeprefix(_RATING_PREFIX) for column in columns), values=values)


def _row_by_name(row_of: Mapping[str, int]) -> Callable[[str], int]:
    def row(name: str) -> int:
        if name not in row_of:
            raise ValueError(f"expected a name of {MAPPING.name}")
        return row_of[name]

    return row
