"""Files of odd-one-out judgments, one file here per format. `load_dataset` reads any of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from bgs.data.formats.delimited import ChoiceIs, read_delimited, write_csv
from bgs.data.formats.published import MAPPING, read_published
from bgs.data.formats.vice import read_vice, write_vice
from bgs.data.judgments import Dataset

__all__ = ["load_dataset", "read_delimited", "read_published", "read_vice", "write_csv", "write_vice"]

logger = logging.getLogger(__name__)


def load_dataset(
    path: str | Path,
    *,
    items: Sequence[str] | None = None,
    choice: str | None = None,
    participant: str | None = None,
    choice_is: ChoiceIs | None = None,
    one_indexed: bool | None = None,
    names: str | Path | Sequence[str] | None = None,
) -> Dataset:
    """Read judgments, and what the source says about the items, from any known format.

    | `path` | format | arguments that apply |
    |---|---|---|
    | a folder | published layout, `read_published` | items, choice, participant |
    | .csv, .tsv | a table, `read_delimited` | items, choice, participant, choice_is, one_indexed |
    | .npy, .txt | SPoSE, VICE, THINGS, `read_vice` | one_indexed, names |

    Args:
        path: file or folder.
        items: names of the three item columns; None: found in the header.
        choice: name of the choice column; None: found in the header.
        participant: name of the participant column; None: found in the header, if there is one.
        choice_is: "item" or "position": what the choice column holds; None: told from its values.
        one_indexed: whether numbering (of items, or of positions) starts at 1; None: told from the values.
        names: item names in the order of their numbers, or the file that holds them; None: a file beside, if any.

    Returns:
        The data set; splits, captions and ratings are empty where the source has none.

    Raises:
        FileNotFoundError: naming the file that is not there.
        ValueError: no usable judgment, an argument that does not apply, or a broken file (naming file, row and column).
    """
    path = Path(path)
    if isinstance(names, str):
        names = Path(names)
    if path.is_dir():
        if not (path / MAPPING).is_file():
            raise FileNotFoundError(f"{path}: a folder without {MAPPING}, which the published layout has")
        _refuse(path, choice_is=choice_is, one_indexed=one_indexed, names=names)
        dataset = read_published(path, items=items, choice=choice, participant=participant)
    elif path.suffix in (".csv", ".tsv"):
        _refuse(path, names=names)
        judgments = read_delimited(
            path, items=items, choice=choice, participant=participant, choice_is=choice_is, one_indexed=one_indexed
        )
        dataset = Dataset(judgments, splits={}, captions={}, ratings=None, folder=path.parent)
    elif path.suffix in (".npy", ".txt"):
        _refuse(path, items=items, choice=choice, participant=participant, choice_is=choice_is)
        judgments = read_vice(path, names=names, one_indexed=one_indexed)
        dataset = Dataset(judgments, splits={}, captions={}, ratings=None, folder=path.parent)
    elif path.exists():
        raise ValueError(f"{path}: suffix {path.suffix!r}, expected a folder or .csv, .tsv, .npy, .txt")
    else:
        raise FileNotFoundError(f"{path}: no such file or folder")
    report = dataset.judgments.cleaning
    if not len(dataset.judgments):
        raise ValueError(f"{path}: no usable judgment ({report})")
    logger.log(logging.WARNING if report.dropped else logging.INFO, "%s: %s", path, report)
    return dataset


def _refuse(path: Path, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: {value!r} does not apply to {path}")
