"""What the kernels of attention are given: layouts, strides and tiles; which of them serve a call; and the order of
their launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bgs_kernels import tuning
from bgs_kernels.attention import tiles as defaults
from bgs_kernels.attention.kernels import (
    attention_bwd_keys_kernel,
    attention_bwd_queries_kernel,
    attention_fwd_kernel,
    rope_kernel,
)
from bgs_kernels.attention.small_kernels import small_bwd_kernel, small_fwd_kernel
from bgs_kernels.pairwise.fused import FUSION, on_device_of, precision

SMALL_ROWS = 32
SMALL_BYTES = 4096
"""Up to how many queries and keys, and bytes of a block of them, a warp holds all of a head: frames of one place, as in
TimeSformer's attention over time."""

SMALL_HEADS = 4
"""Heads of a program of the kernels for a few rows, a warp each."""

ROPE_ENTRIES = 2048
"""Entries of a head that a program turns at a time."""

ROPE_HEADS = 8
"""Heads that a program turns, for which it reads its part of the table once."""


def empty_rows(sets: int, heads: int, rows: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Make (B, H, N, D) laid out as (B, N, H, D), so that a model's transpose and reshape to (B, N, H D) are free."""
    return torch.empty_permuted((sets, heads, rows, width), (0, 2, 1, 3), dtype=like.dtype, device=like.device)


def small_block(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor | None) -> int | None:
    """Give the rows of a block if the kernels for a few rows serve a call. They turn nothing: no model turns so few."""
    rows, width = max(query.shape[2], key.shape[2]), tuning.power_of_two(query.shape[3], defaults.LEAST, 128)
    block = tuning.power_of_two(rows, defaults.LEAST, SMALL_ROWS)
    is_small = rows <= SMALL_ROWS and block * width * query.element_size() <= SMALL_BYTES
    return block if is_small and cos is None else None


def launch_rope(
    given: Sequence[torch.Tensor], cos: torch.Tensor, sin: torch.Tensor, *, transposed: bool
) -> list[torch.Tensor]:
    """Turn one tensor of rows (B, H, N, D), or two of one shape, by a table (N, D) or, ``transposed``, by the transpose
    of its map."""
    with on_device_of(given[0]):
        sets, heads, rows, width = given[0].shape
        turned = [empty_rows(sets, heads, rows, width, x) for x in given]
        if not given[0].numel():
            return turned
        block = tuning.power_of_two(width, 2, 4096)
        block_rows = max(ROPE_ENTRIES // block, 1)
        unit = unit_of(*given)
        n_programs = sets * tuning.blocks(heads, ROPE_HEADS) * tuning.blocks(rows, block_rows)
        rope_kernel[(n_programs, len(given))](
            given[0], given[-1], turned[0], turned[-1], cos.contiguous(), sin.contiguous(), heads, rows,
            *strides(unit, given[0], given[-1]),
            UNIT=unit, D=width, TRANSPOSED=transposed, BM=block_rows, BD=block, BH=ROPE_HEADS, num_warps=4, **FUSION,
        )  # fmt: skip
        return turned


def launch_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    key_mask: torch.Tensor | None,
    scale: float,
    *,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute attention.

    Args:
        query: (B, H, N, D), any strides.
        key: (B, H, M, D), any strides.
        value: (B, H, M, D), any strides.
        cos: (N, D) float32, if queries and keys are to be turned.
        sin: (N, D) float32, likewise.
        key_mask: (B, M) bool, if not all keys take part.
        scale: of the scores, above 0.
        with_gradient: whether a backward will come.

    Returns:
        The outputs (B, H, N, D), the log-sum-exps (B, H, N) float32, and the turned queries and keys, which are empty
        where nothing is turned or no backward comes.
    """
    with on_device_of(query):
        sets, heads, rows, width = query.shape
        others = key.shape[2]
        attended = empty_rows(sets, heads, rows, width, query)
        lse = torch.empty((sets, heads, rows), dtype=torch.float32, device=query.device)
        turned_query = torch.empty(0, dtype=query.dtype, device=query.device)
        turned_key = torch.empty(0, dtype=query.dtype, device=query.device)
        mask = query if key_mask is None else as_numbers(key_mask)
        words: dict[str, Any] = {"HAS_MASK": key_mask is not None, "PRECISION": precision(), "D": width, **FUSION}
        block = small_block(query, key, cos)
        if cos is not None and sin is not None:
            query, key = launch_rope((query, key), cos, sin, transposed=False)
            if with_gradient:
                turned_query, turned_key = query, key
        if not attended.numel():
            return attended, lse, turned_query, turned_key
        unit = unit_of(query, key, value)
        words["UNIT"] = unit
        if block is not None:
            small_fwd_kernel[(tuning.blocks(sets * heads, SMALL_HEADS),)](
                query, key, value, mask, attended, lse, sets, heads, rows, others, scale,
                *strides(unit, query, key, value),
                BH=SMALL_HEADS, BM=block, BD=tuning.power_of_two(width, defaults.LEAST, 128),
                num_warps=SMALL_HEADS, **words,
            )  # fmt: skip
            return attended, lse, turned_query, turned_key

        def run(tiles: tuning.Tiles) -> None:
            first, second = defaults.parts(width)
            raw, capability = query.dtype != torch.float32, tuning.capability(query.device)
            registers = defaults.most_registers(tiles, width, raw=raw, capability=capability)
            attention_fwd_kernel[(sets * heads * tuning.blocks(rows, tiles.rows),)](
                query, key, value, mask, attended, lse, heads, rows, others, scale,
                *strides(unit, query, key, value), D1=first, D2=second,
                BM=tiles.rows, BN=tiles.others,
                num_warps=tiles.warps, num_stages=tiles.stages, maxnreg=registers, **words,
            )  # fmt: skip

        run(chosen("forward", defaults.forward_tiles, query, key, key_mask is not None, run))
        return attended, lse, turned_query, turned_key


def launch_backward(
    upstream: torch.Tensor,
    attended: torch.Tensor,
    lse: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    key_mask: torch.Tensor | None,
    scale: float,
    *,
    by_query: bool,
    by_keys: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the gradients by queries, keys and values.

    Args:
        upstream: (B, H, N, D), the gradient by the outputs, any strides.
        attended: the outputs, any strides.
        lse: their log-sum-exps.
        query: the queries of the forward, turned already.
        key: its keys, turned already.
        value: its values.
        cos: the table of the forward.
        sin: likewise.
        key_mask: that of the forward.
        scale: that of the forward.
        by_query: whether the gradient by the queries is wanted.
        by_keys: whether those by keys and values are.

    Returns:
        (B, H, N, D), (B, H, M, D) and (B, H, M, D), those that are not wanted empty.
    """
    with on_device_of(query):
        sets, heads, rows, width = query.shape
        others = key.shape[2]
        none = torch.empty(0, dtype=query.dtype, device=query.device)
        block = small_block(query, key, cos)
        wanted = (by_query, by_keys, by_keys)
        gradients = [
            empty_rows(sets, heads, count, width, query) if is_wanted or block is not None else torch.empty_like(none)
            for count, is_wanted in zip((rows, others, others), wanted, strict=True)
        ]
        mask = query if key_mask is None else as_numbers(key_mask)
        lse = lse.contiguous()
        unit = unit_of(query, key, value, attended, upstream)
        words: dict[str, Any] = {"HAS_MASK": key_mask is not None, "PRECISION": precision(), "D": width, **FUSION}
        words["UNIT"] = unit
        if not query.numel():  # keys at which no query looks
            gradients = [gradient.zero_() for gradient in gradients]
        elif block is not None:
            small_bwd_kernel[(tuning.blocks(sets * heads, SMALL_HEADS),)](
                query, key, value, mask, upstream, *gradients, sets, heads, rows, others, scale,
                *strides(unit, query, key, value, upstream),
                BH=SMALL_HEADS, BM=block, BD=tuning.power_of_two(width, defaults.LEAST, 128),
                num_warps=SMALL_HEADS, **words,
            )  # fmt: skip
        else:
            first, second = defaults.parts(width)
            words |= {"D1": first, "D2": second, "HAS_ROPE": cos is not None}
            table = [query if each is None else each.contiguous() for each in (cos, sin)]
            delta = torch.empty((sets, heads, rows), dtype=torch.float32, device=query.device)

            def run_queries(tiles: tuning.Tiles) -> None:
                raw, capability = query.dtype != torch.float32, tuning.capability(query.device)
                registers = defaults.most_registers(tiles, width, raw=raw, capability=capability)
                attention_bwd_queries_kernel[(sets * heads * tuning.blocks(rows, tiles.rows),)](
                    query, key, value, *table, mask, attended, upstream, lse, delta, gradients[0],
                    heads, rows, others, scale,
                    *strides(unit, query, key, value, attended, upstream),
                    WITH_GRADIENT=by_query, BM=tiles.rows, BN=tiles.others,
                    num_warps=tiles.warps, num_stages=tiles.stages, maxnreg=registers, **words,
                )  # fmt: skip

            def run_keys(tiles: tuning.Tiles) -> None:
                attention_bwd_keys_kernel[(sets * heads * tuning.blocks(others, tiles.others),)](
                    query, key, value, *table, mask, upstream, lse, delta, *gradients[1:],
                    heads, rows, others, scale,
                    *strides(unit, query, key, value, upstream),
                    BM=tiles.rows, BN=tiles.others, num_warps=tiles.warps, num_stages=tiles.stages, **words,
                )  # fmt: skip

            masked = key_mask is not None
            name = "queries" if by_query else "delta"
            run_queries(chosen(name, defaults.query_gradient_tiles, query, key, masked, run_queries))
            if by_keys:
                run_keys(chosen("keys", defaults.key_gradient_tiles, query, key, masked, run_keys))
        if block is not None:  # whose programs make all three
            gradients = [
                each if is_wanted else torch.empty_like(none) for each, is_wanted in zip(gradients, wanted, strict=True)
            ]
        return gradients[0], gradients[1], gradients[2]


def chosen(
    what: str,
    default: Callable[..., tuning.Tiles],
    query: torch.Tensor,
    key: torch.Tensor,
    masked: bool,
    run: Callable[[tuning.Tiles], None],
) -> tuning.Tiles:
    """Choose tiles: the defaults or, if asked for, those that a search finds the fastest."""
    sets, heads, rows, width = query.shape
    raw = query.dtype != torch.float32
    kind = {"raw": raw, "precision": precision(), "capability": tuning.capability(query.device)}
    words = (f"attention {what}", tuning.name(query.device), query.dtype, precision(), width, masked)
    key_of_call = (*words, *tuning.size_class(sets * heads, rows, key.shape[2]))
    return tuning.autotuned(key_of_call, default(rows, key.shape[2], width, **kind), defaults.CANDIDATES, run)


def unit_of(*given: torch.Tensor) -> int:
    """Count the entries of which the strides of sets, heads and rows are given in multiples. It is one but where Triton
    would not see that they are multiples of 16 bytes: it asks a number only whether it is a multiple of 16."""
    unit = 16 // given[0].element_size()
    steps = [stride for x in given for stride in x.stride()[:3]]
    return 1 if any(step % unit for step in steps) or not any(step % 16 for step in steps) else unit


def strides(unit: int, *given: torch.Tensor) -> tuple[int, ...]:
    """Give the strides of (B, H, N, D), those of sets, heads and rows in units."""
    return tuple(each for x in given for each in (*(stride // unit for stride in x.stride()[:3]), x.stride(3)))


def as_numbers(mask: torch.Tensor) -> torch.Tensor:
    """Give truth values in the smallest numbers that a GPU copies to shared memory beside running products."""
    return mask.to(torch.int32).contiguous()
