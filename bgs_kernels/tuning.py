"""Which tiles the Triton kernels use: defaults by the kind of product and the size of the problem and, if asked for, a
search.

The defaults are chosen so that every program keeps its blocks in registers on GPUs of compute capability 8.0, 9.0 and
10.0 (the tests compile them for all three) and so that small problems are cut into enough programs. Other GPUs get the
conservative ones. ``BGS_AUTOTUNE=1`` times the candidates once for every device, op and size class, and keeps the best
for as long as the process lives.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

LOG = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "BGS_AUTOTUNE"

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

KNOWN = ((8, 0), (9, 0), (10, 0))
"""The compute capabilities that the defaults are compiled for in the tests."""

LARGE = ((9, 0), (10, 0))
"""Those among them whose compilers keep the larger tiles in registers."""


Choice = TypeVar("Choice", bound=Hashable)
"""Tiles, or tiles and a way to use them."""


@dataclass(frozen=True)
class Tiles:
    """How a kernel cuts its problem.

    Args:
        rows: rows of a tile (BM).
        others: its columns, the rows it is compared with (BN).
        inner: entries of a row that are multiplied at a time (BK).
        width: columns of the gradient that a program owns (BD); 0 where there is none.
        warps: warps of a program.
        stages: depth of the pipeline of loads.
        panel: columns of derivatives that a program of the gradient keeps in memory, a multiple of ``others``; 0 where
            it keeps none and recomputes the distances for every ``width`` columns of the gradient.
    """

    rows: int
    others: int
    inner: int
    width: int = 0
    warps: int = 4
    stages: int = 2
    panel: int = 0


PANEL = 1024
"""Columns of a panel of derivatives: 64 rows of bfloat16 are 128 KiB a program and 17 MB on 132 processors, which their
cache holds; and the sums of a panel's rows are read and written once for 1,024 rows that are read."""

PANEL_CHUNKS = 3
"""From how many times ``width`` columns on panels are used: distances would be recomputed as often."""


@functools.cache
def processors(device: torch.device) -> int:
    """Count the multiprocessors of a device, for the interpreter 3: a program then gets several blocks of rows."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


@functools.cache
def capability(device: torch.device) -> tuple[int, int] | None:
    """Give the compute capability of a device, None where it has none or another than those that are known."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_capability(device)
    return found if found in KNOWN else None


@functools.cache
def name(device: torch.device) -> str:
    """Give the name of a device: all of one name share what a search finds."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def blocks(size: int, of: int) -> int:
    """Count the blocks that cover a size."""
    return -(-size // of)


def power_of_two(size: int, least: int, most: int) -> int:
    """Give the smallest power of two that is at least ``size``, within limits that are powers of two."""
    return min(max(1 << (size - 1).bit_length(), least), most)


def forward_tiles(
    rows: int, columns: int, *, raw: bool, precision: str, heavy: bool, capability: tuple[int, int] | None
) -> Tiles:
    """Choose the square tiles of the distances.

    Args:
        rows: N, or the larger number where there are two kinds of rows.
        columns: D.
        raw: whether rows of half precision are multiplied as they are.
        precision: that of float32 products, in Triton's words.
        heavy: whether a tile is more than distances and targets: weights, a mask or targets that are computed.
        capability: that of the device, None where it has none or another than those known.
    """
    if INTERPRETED:  # whose cost is by operation, not by entry
        return Tiles(32, 32, power_of_two(columns, 16, 256))
    if rows <= 512:  # 36 programs at 250 rows
        return Tiles(32, 32, power_of_two(columns, 16, 64 if raw else 16), warps=4, stages=2)
    if raw:
        inner = power_of_two(columns, 16, 64)
        aligned = rows % 16 == 0  # targets whose rows are not take registers for addresses
        if rows > 4096 and aligned and not heavy and capability == (9, 0):
            return Tiles(128, 128, inner, warps=8, stages=3)
        return Tiles(64, 64, inner, warps=8, stages=3)
    if precision == "ieee":
        return Tiles(64, 64, 16, warps=8, stages=2 if capability in LARGE else 3)
    if capability not in LARGE:
        return Tiles(32, 32, 16, warps=4, stages=2)
    return Tiles(64, 64, power_of_two(columns, 16, 32), warps=8, stages=2)


def backward_tiles(
    rows: int,
    columns: int,
    *,
    raw: bool,
    precision: str,
    heavy: bool,
    capability: tuple[int, int] | None,
    panels: bool = True,
) -> Tiles:
    """Choose the tiles of the gradient; the arguments are those of ``forward_tiles`` and whether panels may be used."""
    width = power_of_two(columns, 16, 128)
    panel = PANEL if panels and columns >= PANEL_CHUNKS * width else 0
    if INTERPRETED:  # whose cost is by operation, not by entry
        width = power_of_two(columns, 16, 256)
        return Tiles(64, 64, width, width=width, panel=128 if panel else 0)
    small = rows <= 2048  # as many programs as rows allow
    if raw:
        inner = power_of_two(columns, 16, 64)
        if small:
            return Tiles(16, 32, min(inner, 32), width=width, warps=8, panel=panel)
        if capability not in LARGE:
            return Tiles(32, 32, inner, width=width, warps=8, panel=panel)
        if heavy:
            return Tiles(64, 32, min(inner, 32), width=width, warps=8, stages=3, panel=panel)
        return Tiles(64, 64, inner, width=width, warps=8, stages=3, panel=panel)
    if precision == "ieee":
        rows_of_tile = 16 if small or heavy or capability not in LARGE else 32
        return Tiles(rows_of_tile, 16, 16, width=width, warps=8, panel=panel)
    if small:
        return Tiles(16, 32, 16, width=width, warps=8, stages=2 if capability == (9, 0) else 1, panel=panel)
    return Tiles(32, 16, 16, width=width, warps=8, stages=2 if capability in LARGE else 1, panel=panel)


FORWARD_CANDIDATES = tuple(
    Tiles(rows, rows, inner, warps=warps, stages=stages)
    for rows, inner, warps, stages in (
        (32, 16, 4, 2),
        (32, 64, 4, 3),
        (64, 16, 4, 2),
        (64, 32, 8, 3),
        (64, 64, 4, 3),
        (64, 64, 8, 4),
        (128, 32, 8, 3),
        (128, 64, 8, 3),
        (128, 64, 8, 4),
    )
)

BACKWARD_CANDIDATES = tuple(
    Tiles(rows, others, inner, width=width, warps=warps, stages=stages, panel=panel)
    for rows, others, inner, width, warps, stages in (
        (16, 16, 16, 128, 8, 2),
        (16, 32, 16, 128, 4, 2),
        (32, 16, 16, 128, 8, 2),
        (32, 32, 32, 64, 8, 2),
        (64, 32, 64, 128, 8, 3),
        (64, 64, 64, 128, 8, 3),
        (64, 64, 64, 256, 8, 3),
        (128, 64, 64, 64, 8, 3),
        (128, 64, 64, 128, 8, 3),
    )
    for panel in (0, PANEL)
)


def autotuned(
    key: tuple[object, ...],
    default: Choice,
    others: Iterable[Choice],
    run: Callable[[Choice], object],
    time: Callable[[Callable[[], object]], float] | None = None,
) -> Choice:
    """Take the fastest of several tiles, timed once for every key, or the default where no search is asked for.

    Args:
        key: what the choice depends on: op, device, dtypes, metrics and size class.
        default: what is taken without a search; it is timed as well.
        others: the other candidates.
        run: launches the kernels with the tiles, on buffers of its own; it may be run any number of times.
        time: measures a call in milliseconds, by default ``triton.testing.do_bench``.

    Returns:
        The choice; candidates that do not compile or do not fit are passed over.
    """
    best: dict[tuple[object, ...], Choice] = _best
    if key in best:
        return best[key]
    if INTERPRETED or os.environ.get(ENVIRONMENT_VARIABLE) != "1" or torch.cuda.is_current_stream_capturing():
        return default
    if key not in best:
        if time is None:
            from triton.testing import do_bench

            time = functools.partial(do_bench, warmup=5, rep=20, return_mode="median")
        times = {}
        for tiles in dict.fromkeys((default, *others)):
            try:
                times[tiles] = time(functools.partial(run, tiles))
            except Exception as error:  # a tile that the compiler or the chip refuses is only not chosen
                LOG.debug("%s: %s does not run: %s", key, tiles, error)
        best[key] = min(times, key=times.__getitem__) if times else default
        LOG.info("%s: %s at %.4f ms", key, best[key], times.get(best[key], float("nan")))
    return best[key]


def size_class(*sizes: int) -> tuple[int, ...]:
    """Give the sizes' powers of two: problems of one class share their tiles."""
    return tuple(size.bit_length() for size in sizes)


_best: dict[tuple[object, ...], Any] = {}
