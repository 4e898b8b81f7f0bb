"""Which tiles the kernels of attention use: defaults by head width, product, size and compute capability, and what a search
tries (see ``bgs_kernels.tuning``, whose words are used here: rows are queries, others are keys).
"""

from __future__ import annotations

from bgs_kernels.tuning import INTERPRETED, Tiles, power_of_two

LEAST = 16
"""The narrowest block that the tensor cores multiply."""


def parts(width: int) -> tuple[int, int]:
    """Cut a head into one block of columns, or two where that leaves fewer columns of nothing: 80 are 64 and 16, 88 are
    64 and 32, 104 are 128 and 0."""
    whole = power_of_two(width, LEAST, 1 << 30)
    if whole == width or whole == LEAST:
        return whole, 0
    first = whole // 2
    second = power_of_two(width - first, LEAST, whole)
    return (first, second) if second < first else (whole, 0)


def forward_tiles(queries: int, width: int, *, raw: bool, precision: str, capability: tuple[int, int] | None) -> Tiles:
    """Choose the blocks of queries and keys of the forward."""
    if INTERPRETED:
        return Tiles(64, 32, width)
    return Tiles(128, 64, width, warps=8, stages=3)


def query_gradient_tiles(
    queries: int, width: int, *, raw: bool, precision: str, capability: tuple[int, int] | None
) -> Tiles:
    """Choose the blocks of queries and keys of the gradient by the queries."""
    if INTERPRETED:
        return Tiles(32, 64, width)
    return Tiles(64, 64, width, warps=8, stages=3)


def key_gradient_tiles(
    queries: int, width: int, *, raw: bool, precision: str, capability: tuple[int, int] | None
) -> Tiles:
    """Choose the blocks of queries and keys of the gradient by the keys and values."""
    if INTERPRETED:
        return Tiles(32, 64, width)
    return Tiles(64, 64, width, warps=8, stages=3)


CANDIDATES = tuple(
    Tiles(rows, others, 0, warps=warps, stages=stages)
    for rows, others in ((64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128), (32, 64), (32, 128))
    for warps in (4, 8)
    for stages in (2, 3)
)
"""What a search tries; the width of the head is not theirs to choose."""
