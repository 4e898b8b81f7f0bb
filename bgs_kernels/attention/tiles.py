"""Which tiles the kernels of attention use: defaults by the kind of product, the sizes and the compute capability, and
what a search tries. The words and the search are those of ``bgs_kernels.tuning``: rows are queries, others are keys.
"""

from __future__ import annotations

from bgs_kernels.tuning import INTERPRETED, Tiles, blocks, power_of_two

LEAST = 16
"""The narrowest block that tensor cores multiply."""

LARGE = ((9, 0), (10, 0))
"""The compute capabilities whose matrix units read what they multiply from shared memory, not from registers."""


def parts(width: int) -> tuple[int, int]:
    """Cut a head into one block of columns, or two (the second is 0 otherwise) where that leaves fewer without content:
    80 are 64 and 16, 88 are 64 and 32, 104 are one of 128."""
    whole = power_of_two(width, LEAST, 1 << 30)
    if whole in (width, LEAST):
        return whole, 0
    second = power_of_two(width - whole // 2, LEAST, whole)
    return (whole // 2, second) if second < whole // 2 else (whole, 0)


def takes_short_blocks(rows: int) -> bool:
    """Say whether blocks of 64 rows are taken instead of 128: where these would hold an eighth more rows than needed,
    as 3 blocks do for the 257 tokens of an image."""
    return 8 * 128 * blocks(rows, 128) > 9 * 64 * blocks(rows, 64)


def forward_tiles(
    queries: int, keys: int, width: int, *, raw: bool, precision: str, capability: tuple[int, int] | None
) -> Tiles:
    """Choose the blocks of queries and keys of the forward.

    Args:
        queries: N.
        keys: M.
        width: D.
        raw: whether the inputs are of half precision.
        precision: that of float32 products, in Triton's words.
        capability: that of the device, None where it has none or another than those known.
    """
    if INTERPRETED:  # whose cost is by operation, not by entry
        return Tiles(64, 32, width)
    if not raw:
        return Tiles(64 if precision == "tf32" else 16, 32, width, warps=4, stages=2)
    if width <= 96 and takes_short_blocks(queries):
        return Tiles(64, 64, width, warps=4, stages=3)
    if width > 96 and capability not in LARGE:
        return Tiles(128, 32, width, warps=8, stages=3)
    return Tiles(128, 64, width, warps=8, stages=3)


def query_gradient_tiles(
    queries: int, keys: int, width: int, *, raw: bool, precision: str, capability: tuple[int, int] | None
) -> Tiles:
    """Choose the blocks of queries and keys of the gradient by the queries; arguments as those of ``forward_tiles``."""
    if INTERPRETED:
        return Tiles(32, 64, width)
    large = capability in LARGE
    if not raw:
        if precision == "tf32" and (large or width <= 64):
            return Tiles(64 if large else 32, 32, width, warps=4, stages=2)
        return Tiles(16, 16, width, warps=4, stages=2)
    if width <= 96 and takes_short_blocks(queries):
        return Tiles(64, 64, width, warps=4, stages=3)
    return Tiles(128, 64 if large or width <= 96 else 32, width, warps=8, stages=3)


def most_registers(tiles: Tiles, width: int, *, raw: bool, capability: tuple[int, int] | None) -> int | None:
    """Give the registers that a thread of the forward and of the gradient by the queries may have, None for any number:
    with 128 two programs share a multiprocessor, with a few more, which some versions of Triton and turning back take,
    they do not. The compiler keeps what does not fit in memory across the loop, and nothing in it (the tests look)."""
    return 128 if raw and capability == (9, 0) and tiles.warps == 8 and width <= 64 else None


def key_gradient_tiles(
    queries: int, keys: int, width: int, *, raw: bool, precision: str, capability: tuple[int, int] | None
) -> Tiles:
    """Choose the blocks of queries and keys of the gradient by keys and values; arguments as those of
    ``forward_tiles``."""
    if INTERPRETED:
        return Tiles(32, 64, width)
    large = capability in LARGE
    if not raw:
        if precision == "tf32" and width <= 64:
            return Tiles(32, 64 if large else 32, width, warps=4, stages=2)
        return Tiles(16, 16, width, warps=4, stages=2)
    if width <= (96 if large else 64) and takes_short_blocks(keys):
        return Tiles(32, 64, width, warps=4, stages=3)
    if width <= {(9, 0): 80, (10, 0): 128}.get(capability or (8, 0), 32):
        return Tiles(64, 128, width, warps=8, stages=3)
    if large or width <= 96:
        return Tiles(32, 128, width, warps=8, stages=3)
    return Tiles(16, 128, width, warps=8, stages=2)


CANDIDATES = tuple(
    Tiles(rows, others, 0, warps=warps, stages=stages)
    for rows, others in ((16, 64), (32, 64), (32, 128), (64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128))
    for warps in (4, 8)
    for stages in (2, 3)
)
"""What a search tries for each of the three; the width of the head is not theirs to choose."""
