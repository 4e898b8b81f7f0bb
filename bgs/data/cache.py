"""Decoded clips on disk, memory-mapped: one .npy file a clip, found by what the video file holds and how it is decoded.

Entries are only ever written whole, under a temporary name that is then renamed, so any number of threads and processes
may share a cache; an entry that is not what it should be (cut short by a full disk, say) counts as absent.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Part of every key: raise it when the decoded pixels change for the same settings, and old entries are left behind.
FORMAT_VERSION = 2


def default_cache() -> Path:
    """Where decoded clips are kept unless told otherwise: $BGS_CACHE, else $XDG_CACHE_HOME/bgs, else ~/.cache/bgs."""
    if folder := os.environ.get("BGS_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bgs"


class ClipCache:
    """Arrays of one shape, made from files with one set of settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        """Names the place; nothing is read or written yet.

        Args:
            folder: root of the cache; made when first written to.
            settings: JSON values, everything besides a file's content that decides its array.
            shape: shape of every array; the type is uint8.
        """
        canonical = json.dumps({"format": FORMAT_VERSION, **settings}, sort_keys=True, separators=(",", ":"))
        self.folder = folder / "clips" / hashlib.sha256(canonical.encode()).hexdigest()[:16]
        self.shape = shape
        self._header = _npy_header(shape)

    def entry(self, path: Path) -> Path:
        """The cache file that belongs to the present content of the file at `path`; it need not exist."""
        return self.folder / f"{content_hash(path)}.npy"

    def read(self, path: Path) -> np.ndarray | None:
        """Opens the array of a file.

        Args:
            path: the source file.

        Returns:
            uint8, of the cache's shape, memory-mapped and read-only; None where there is no entry or it is damaged.
        """
        try:
            with open(self.entry(path), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != len(self._header) + int(np.prod(self.shape)) or file.read(len(self._header)) != self._header:
                    return None
                return np.memmap(file, dtype=np.uint8, mode="r", offset=len(self._header), shape=self.shape)
        except FileNotFoundError:
            return None

    def write(self, path: Path, array: np.ndarray) -> None:
        """Stores the array of a file, whole or not at all.

        Args:
            path: the source file.
            array: uint8, of the cache's shape.

        Raises:
            ValueError: `array` has another shape or type.
            OSError: the cache cannot be written to.
        """
        if array.shape != self.shape or array.dtype != np.uint8:
            raise ValueError(f"array: expected uint8 {self.shape}, got {array.dtype} {array.shape}")
        entry = self.entry(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=entry.stem, suffix=".tmp", delete=False) as file:
            try:
                np.save(file, array, allow_pickle=False)
                file.close()
                os.replace(file.name, entry)
            except BaseException:
                os.unlink(file.name)
                raise


def content_hash(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal; remembered for as long as its size and modification time stay."""
    stat = path.stat()
    return _hash(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _hash(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The bytes that `np.save` puts before a uint8 array of this shape."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()
