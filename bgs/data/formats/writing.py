"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` when the block ends without an error.

    Args:
        path: the file to write or replace.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` to write into; it takes the place of `target` when the block ends without an
    error, and what was there is deleted: whether it may be is the caller's to check.

    Args:
        target: the folder to make or replace; its parent is made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        written, earlier = Path(scratch) / "new", Path(scratch) / "old"
        written.mkdir()
        yield written
        if target.exists():
            os.replace(target, earlier)
        try:
            os.replace(written, target)
        except OSError:
            if earlier.exists():
                os.replace(earlier, target)
            raise
