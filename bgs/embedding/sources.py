"""From what a command line names - files, folders, patterns, lists - to video files, each once, in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from bgs.data.clips import VIDEO_SUFFIXES

# An error lists this many names before it only counts.
NAMES_IN_ERROR = 10


def find_videos(inputs: Iterable[str]) -> list[str]:
    """Lists the video files that inputs name.

    Args:
        inputs: files; folders, for all video files in them and below; patterns such as `videos/**/*.mp4`; and
            `@list.txt` for a text file with the name of a file on each line, relative to the current folder.

    Returns:
        names as they were given, in that order; those in a folder, or that fit a pattern, in the order of their names.

    Raises:
        FileNotFoundError: a file, or a list, is not there.
        ValueError: an input names no video, a file is named twice, or a name is not UTF-8.
    """
    found: dict[str, str] = {}
    missing: list[str] = []
    for given in inputs:
        names = list(_named_by(given))
        if not names:
            raise ValueError(f"{given}: no video file there")
        for name in names:
            _check_encoding(name)
            place = os.path.abspath(name)
            if place in found:
                before = f" (as {found[place]})" if found[place] != name else ""
                raise ValueError(f"{given}: names {name} a second time{before}")
            found[place] = name
            if not os.path.isfile(name):
                missing.append(name)
    if missing:
        listed = ", ".join(missing[:NAMES_IN_ERROR]) + (", ..." if len(missing) > NAMES_IN_ERROR else "")
        raise FileNotFoundError(f"{len(missing)} of {len(found)} files are not there: {listed}")
    return list(found.values())


def _named_by(given: str) -> Iterator[str]:
    if given.startswith("@"):
        yield from _listed(Path(given[1:]))
    elif os.path.isdir(given):
        yield from sorted(str(path) for path in Path(given).rglob("*") if _is_video(path))
    elif os.path.exists(given) or not glob.has_magic(given):
        yield given
    else:
        yield from sorted(name for name in glob.glob(given, recursive=True) if os.path.isfile(name))


def _listed(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise FileNotFoundError(f"@{path}: no such list of files")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"@{path}: not a text file in UTF-8 ({error})") from error
    yield from (line.strip() for line in lines if line.strip())


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _check_encoding(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name!r}: the name of the file is not UTF-8 and could not be written to a table") from None
