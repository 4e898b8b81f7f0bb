"""How projections with adapters are computed: the choice between ways, all of which are implemented, and their tiles.

The ways, of the forward and of the backward alike:

* "library": the frozen product by cuBLAS; the low-rank intermediate by a thin kernel that reads x (dY) once, and its
  product added in place.
* "fused": the same thin kernel; the frozen product by a Triton kernel that begins each tile with its low-rank term.
* "in-loop": one Triton kernel that makes the low-rank intermediate beside the frozen product; for ranks up to
  ``WIDEST``, and in the forward without dropout only.

The default is "library" everywhere. That choice is by count, not by timing: it launches and moves less than peft's own
layer for every shape, and its frozen product is the library's own (docs/lora.md). ``BGS_LORA_WAY`` names another
for all calls, so that they can be compared, and ``BGS_AUTOTUNE=1`` times them all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from bgs_kernels import tuning
from bgs_kernels.tuning import INTERPRETED, Tiles

WAYS = ("library", "fused", "in-loop")

ENVIRONMENT_VARIABLE = "BGS_LORA_WAY"

WIDEST = {torch.float32: 32, torch.bfloat16: 64, torch.float16: 64}
"""Ranks that a kernel holds at a time, by the dtype of the adapters; larger ones are taken in blocks of this many."""

PROGRAMS = 4
"""Programs of a thin kernel for every multiprocessor, so that all have work to the end."""


@dataclass(frozen=True)
class Plan:
    """How a forward or a backward is computed.

    Args:
        way: one of ``WAYS``.
        product: tiles of the frozen product where Triton computes it: ``rows`` x ``others``, ``inner`` at a time.
        low: blocks of the thin products: ``rows``, ``inner`` at a time.
        outer: blocks of the gradients by A and B and of what is added in place: ``others`` columns, ``rows`` at a time.
    """

    way: str
    product: Tiles
    low: Tiles
    outer: Tiles


@dataclass(frozen=True)
class Problem:
    """What a plan depends on.

    Args:
        rows: M, the rows of x.
        columns: K.
        outputs: the sum of O over the projections.
        rank: the largest.
        slots: how many projections have an adapter.
        dtype: of x.
        adapter_dtype: of A and B.
        dropout: the probability to drop an entry.
        precision: of float32 products, in Triton's words.
        capability: that of the device, None where it has none or another than those known.
        processors: how many multiprocessors it has.
    """

    rows: int
    columns: int
    outputs: int
    rank: int
    slots: int
    dtype: torch.dtype
    adapter_dtype: torch.dtype
    dropout: float
    precision: str
    capability: tuple[int, int] | None
    processors: int

    @property
    def thin(self) -> str:
        """The precision of float32 products with A and B: an operand of half precision is exact in TensorFloat-32, so
        that three products of it are as good as one in IEEE float32."""
        return "tf32x3" if self.precision == "ieee" and self.dtype != torch.float32 else self.precision


def forward_plan(problem: Problem) -> Plan:
    """Choose how projections are computed.

    Raises:
        ValueError: ``BGS_LORA_WAY`` names no way.
    """
    return default_plan(problem, way_of(problem, is_forward=True), problem.outputs)


def backward_plan(problem: Problem) -> Plan:
    """Choose how their gradients are computed.

    Raises:
        ValueError: ``BGS_LORA_WAY`` names no way.
    """
    return default_plan(problem, way_of(problem, is_forward=False), problem.columns)


@functools.cache
def default_plan(problem: Problem, way: str, columns: int) -> Plan:
    """Give the tiles of a way whose frozen product has ``columns`` columns."""
    return Plan(way, product_tiles(problem, columns), low_tiles(problem), outer_tiles(problem))


def way_of(problem: Problem, *, is_forward: bool) -> str:
    """Give the way that is asked for, or "fused" where that is "in-loop" and does not serve."""
    way = os.environ.get(ENVIRONMENT_VARIABLE, WAYS[0])
    if way not in WAYS:
        raise ValueError(f"{ENVIRONMENT_VARIABLE}: expected one of {', '.join(WAYS)}, got {way!r}")
    return "fused" if way == "in-loop" and not serves_in_loop(problem, is_forward=is_forward) else way


def product_tiles(problem: Problem, columns: int) -> Tiles:
    """Choose the tiles of the frozen product with ``columns`` columns."""
    if INTERPRETED:  # whose cost is by operation, not by entry
        return Tiles(64, 64, 64)
    large = problem.capability in tuning.LARGE
    if problem.dtype == torch.float32:
        return Tiles(64, 32 if problem.dropout or not large else 64, 16, warps=8, stages=2)
    if problem.adapter_dtype == torch.float32:
        return Tiles(128 if large else 64, 64 if large else 32, 64, warps=8, stages=3)
    few = tuning.blocks(problem.rows, 128) * tuning.blocks(columns, 128) < 2 * problem.processors
    masks = problem.dropout > 0 and problem.slots > 1  # beside the sum over slots
    if few or masks or not large:
        return Tiles(128, 64, 64, warps=8, stages=3)
    return Tiles(128, 128, 64, warps=8, stages=4)


def low_tiles(problem: Problem) -> Tiles:
    """Choose the blocks of the thin products."""
    if INTERPRETED:
        return Tiles(64, 64, 64)
    held = problem.slots * rank_block(problem.rank, problem.adapter_dtype)
    if problem.adapter_dtype == torch.float32:
        return Tiles(32 if held <= 64 else 16, 0, 32, warps=4, stages=4)
    many = problem.rows >= 64 * PROGRAMS * problem.processors
    return Tiles(64 if many and held <= 64 else 32, 0, 64, warps=4, stages=4)


def outer_tiles(problem: Problem) -> Tiles:
    """Choose the blocks of the gradients by A and B."""
    if INTERPRETED:
        return Tiles(64, 64, 0)
    if problem.adapter_dtype == torch.float32:
        return Tiles(32, 64 if problem.rank <= 16 else 32, 0, warps=8, stages=2)
    if problem.capability not in tuning.LARGE:
        return Tiles(32, 64, 0, warps=8, stages=3)
    return Tiles(64, 64, 0, warps=8, stages=3)


def candidates(default: Plan, problem: Problem, *, is_forward: bool) -> Iterator[Plan]:
    """Give the plans that a search compares with the default."""
    ways = [way for way in WAYS if way != "in-loop" or serves_in_loop(problem, is_forward=is_forward)]
    if ENVIRONMENT_VARIABLE in os.environ:
        ways = [default.way]
    low = [Tiles(rows, 0, inner, warps=4, stages=4) for rows, inner in ((16, 128), (32, 64), (64, 64), (128, 64))]
    outer = [Tiles(rows, others, 0, warps=8, stages=3) for rows, others in ((32, 64), (64, 64), (64, 128))]
    product = [
        Tiles(rows, others, inner, warps=warps, stages=stages)
        for rows, others, inner, warps, stages in (
            (64, 128, 64, 4, 4),
            (128, 64, 64, 8, 3),
            (128, 128, 64, 8, 3),
            (128, 128, 64, 8, 4),
            (128, 256, 64, 8, 3),
            (256, 128, 64, 8, 3),
        )
    ]
    for way in ways:
        plan = replace(default, way=way)
        if way == "library":
            yield from (replace(plan, low=tiles) for tiles in low)
        else:
            yield from (replace(plan, product=tiles) for tiles in (default.product, *product))
        if not is_forward:
            yield from (replace(plan, outer=tiles) for tiles in outer)


def serves_in_loop(problem: Problem, *, is_forward: bool) -> bool:
    """Say whether the low-rank intermediate can be made beside the frozen product."""
    return problem.rank <= WIDEST[problem.adapter_dtype] and not (is_forward and problem.dropout > 0)


def rank_block(rank: int, dtype: torch.dtype) -> int:
    """Choose how many ranks of adapters of some dtype are held at a time."""
    return tuning.power_of_two(rank, 16, WIDEST[dtype])


def chunks(problem: Problem, columns: int, tiles: Tiles) -> tuple[int, int]:
    """Choose into how many chunks the rows are cut whose sums are made apart, and the rows of one.

    Args:
        problem: what is computed.
        columns: of the narrowest matrix that is summed over its rows.
        tiles: the blocks that a program takes.
    """
    n_blocks = tuning.blocks(problem.rows, tiles.rows)
    wanted = tuning.blocks(PROGRAMS * problem.processors, tuning.blocks(max(columns, 1), tiles.others))
    chunk = tuning.blocks(n_blocks, min(wanted, n_blocks)) * tiles.rows
    return tuning.blocks(problem.rows, chunk), chunk
