"""Finished batches on disk, from which a run that was killed goes on: one file a batch, found by the files in it and by
everything else that decides their embeddings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bgs.data.formats.writing import replacing

# The second form is that of one that was being written when its process was killed.
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors|\.[0-9a-f]{64}\.safetensors\.\d+")


@dataclass(frozen=True)
class Shard:
    """What became of a batch of files.

    Attributes:
        embeddings: float32, one row for each file that could be used, in their order.
        errors: for each of the others its place in the batch and what is wrong with it.
    """

    embeddings: NDArray[np.float32]
    errors: dict[int, str]


class Shards:
    """The finished batches of one table.

    Args:
        output: the table; they are kept in a folder beside it, made when first written to.
        about: everything besides the files that decides the embeddings, JSON-ready.
    """

    def __init__(self, output: Path, about: dict[str, Any]) -> None:
        self.folder = output.with_name(f"{output.name}.partial")
        self._about = json.dumps(about, sort_keys=True)

    def read(self, files: Sequence[str]) -> Shard | None:
        """Finds the batch of these files as they are now; None where it is not there or is damaged."""
        try:
            with safe_open(self._entry(files), framework="numpy") as content:
                errors: dict[str, str] = json.loads(content.metadata()["errors"])
                return Shard(content.get_tensor("embeddings"), {int(place): error for place, error in errors.items()})
        except (FileNotFoundError, SafetensorError):
            return None

    def write(self, files: Sequence[str], shard: Shard) -> None:
        """Keeps a batch, whole or not at all."""
        self.folder.mkdir(exist_ok=True)
        with replacing(self._entry(files)) as scratch:
            save_file({"embeddings": shard.embeddings}, scratch, {"errors": json.dumps(shard.errors)})

    def remove(self) -> None:
        """Deletes all of them, also those of other models and files, and the folder unless it holds anything else."""
        for path in self.folder.glob("*"):
            if _ENTRY.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _entry(self, files: Sequence[str]) -> Path:
        content = json.dumps([self._about, [identity(name) for name in files]])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"


def identity(name: str) -> list[str | int]:
    """What tells whether a file is still the same: place, size in bytes and time of the last change."""
    try:
        stat = os.stat(name)
    except OSError:
        return [os.path.abspath(name)]
    return [os.path.abspath(name), stat.st_size, stat.st_mtime_ns]
