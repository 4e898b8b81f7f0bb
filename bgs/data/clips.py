"""The video files behind a set of stimuli: finding them by name, checking them all before training, and giving their
frames in batches, from the cache where they have been decoded before.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bgs.data.ahead import ahead
from bgs.data.cache import ClipCache
from bgs.data.decode import Decoder, choose_decoder, decode
from bgs.data.preprocess import Preprocess
from bgs.data.video_file import ClipError

VIDEO_SUFFIXES = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})

# An error lists this many missing names before it only counts.
NAMES_IN_ERROR = 10


class BrokenClipsError(ValueError):
    """Video files that cannot be used, all of them at once.

    Attributes:
        errors: one for each file.
    """

    def __init__(self, errors: Sequence[ClipError], total: int) -> None:
        super().__init__(errors, total)
        self.errors = tuple(errors)
        self.total = total

    def __str__(self) -> str:
        lines = (f"\n  {error}" for error in self.errors)
        return f"{len(self.errors)} of {self.total} clips cannot be used:{''.join(lines)}"


def find_clips(folder: str | Path, names: Iterable[str]) -> list[Path]:
    """Finds the video file of each name.

    A name may end in a video suffix (".mp4") or not; a file of exactly that name comes first, else the one video file
    that differs in suffix alone ("walk" and "walk.mp4" both find walk.webm).

    Args:
        folder: where the files are.
        names: names of stimuli.

    Returns:
        One path for each name, in order.

    Raises:
        FileNotFoundError: the folder, or the file of some names, does not exist; the message lists the names.
        ValueError: several files fit a name.
    """
    folder, names = Path(folder), list(names)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of clips")
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file():
            by_stem[file.stem].append(file)

    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        exact = folder / name
        if exact.suffix.lower() in VIDEO_SUFFIXES and exact.is_file():
            found.append(exact)
            continue
        fitting = by_stem.get(exact.stem if exact.suffix.lower() in VIDEO_SUFFIXES else name, [])
        if len(fitting) > 1:
            raise ValueError(f"{folder}: several files fit clip {name!r}: {', '.join(file.name for file in fitting)}")
        if fitting:
            found += fitting
        else:
            missing.append(name)
    if missing:
        listed = ", ".join(missing[:NAMES_IN_ERROR]) + (", ..." if len(missing) > NAMES_IN_ERROR else "")
        there = sum(map(len, by_stem.values()))
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(names)} clips are missing: {listed} ({there} video files are there)"
        )
    return found


def check_clips(paths: Iterable[str | Path], preprocess: Preprocess, *, workers: int | None = None) -> None:
    """Decodes every clip once and keeps nothing; `ClipSet.prepare` does the same and fills the cache.

    Args:
        paths: video files.
        preprocess: what will be asked of them.
        workers: see `ClipSet`.

    Raises:
        BrokenClipsError: some files cannot be used; it names each and what is wrong with it.
    """
    ClipSet(paths, preprocess, cache=None, workers=workers).prepare(progress=False)


class ClipSet:
    """Clips as tensors, by row. May be used from several threads, and pickled to other processes."""

    def __init__(
        self,
        paths: Iterable[str | Path],
        preprocess: Preprocess,
        cache: str | Path | None,
        *,
        workers: int | None = None,
        decoder: Decoder = "auto",
    ) -> None:
        """Names the clips; no file is touched yet.

        Args:
            paths: video files; a clip's row is its place here.
            preprocess: which frames are taken and how they are resized.
            cache: folder for decoded clips (see `bgs.data.cache.default_cache`), or None to decode every time.
            workers: files decoded at a time, one thread each; None takes the number of usable cores.
            decoder: see `bgs.data.decode.decode`.

        Raises:
            ImportError: `decoder` is not usable here.
            ValueError: `workers` is not positive.
        """
        if workers is not None and workers < 1:
            raise ValueError(f"workers: expected a positive integer or None, got {workers}")
        self.paths = [Path(path) for path in paths]
        self.preprocess = preprocess
        self.workers = workers or _usable_cores()
        self.decoder = choose_decoder(decoder)
        settings = {"decoder": self.decoder, **preprocess.pixel_settings()}
        self._cache = None if cache is None else ClipCache(Path(cache), settings, preprocess.shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        """The clip of a row: uint8, shape (T, 3, H, W), writable.

        Raises:
            ClipError: its file cannot be used.
        """
        return torch.from_numpy(np.array(self._load(row)))

    def batch(self, rows: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The clips of several rows.

        Args:
            rows: B rows, in any order, repeats allowed.

        Returns:
            uint8, shape (B, T, 3, H, W).

        Raises:
            ClipError: a file cannot be used.
        """
        chosen = [int(row) for row in rows]
        batch = torch.empty((len(chosen), *self.preprocess.shape), dtype=torch.uint8)
        pixels = batch.numpy()

        def fill(k: int) -> None:
            pixels[k] = self._load(chosen[k])

        for _ in _each(fill, range(len(chosen)), self.workers):
            pass
        return batch

    def stream(self, rows: Iterable[int], *, depth: int) -> Iterator[Tensor | ClipError]:
        """The clips of some rows one by one, in order, while the next ones are decoded.

        Args:
            rows: which, in any order.
            depth: clips that are decoded, or being decoded, ahead of the one in use.

        Returns:
            For each row uint8, shape (T, 3, H, W), or the error where its file cannot be used.
        """

        def attempt(row: int) -> Tensor | ClipError:
            try:
                return self[row]
            except ClipError as error:
                return error

        return ahead(attempt, rows, depth=depth, workers=self.workers)

    def prepare(self, progress: bool = True) -> None:
        """Decodes every clip that is not cached yet, so that a bad file is known now and training never waits.

        Args:
            progress: whether to show a progress bar (on a terminal only).

        Raises:
            BrokenClipsError: some files cannot be used; it names each and what is wrong with it. The rest is cached.
        """
        errors: list[ClipError] = []

        def attempt(row: int) -> None:
            try:
                self._load(row)
            except ClipError as error:
                errors.append(error)

        rows = list({path: row for row, path in enumerate(self.paths)}.values())
        done = _each(attempt, rows, self.workers)
        for _ in tqdm(done, total=len(rows), desc="decoding clips", unit="clip", disable=None if progress else True):
            pass
        if errors:
            raise BrokenClipsError(sorted(errors, key=lambda error: error.path), len(rows))

    def _load(self, row: int) -> np.ndarray:
        path = self.paths[row]
        if self._cache is None or not path.is_file():
            return decode(path, self.preprocess, self.decoder).numpy()
        clip = self._cache.read(path)
        if clip is None:
            clip = decode(path, self.preprocess, self.decoder).numpy()
            self._cache.write(path, clip)
        return clip


def _each(work: Callable[[int], None], rows: Sequence[int], workers: int) -> Iterator[None]:
    """Does the work of each row on a pool of threads; when one fails, the rows not yet begun are dropped."""
    if workers == 1 or len(rows) < 2:
        yield from map(work, rows)
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(work, rows)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
