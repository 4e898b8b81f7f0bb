"""What the kernels of attention are given: layouts, strides and tiles, which of them serve a call, and the order of their
launches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from bgs_kernels import tuning
from bgs_kernels.attention import tiles as defaults
from bgs_kernels.attention.kernels import (
    attention_bwd_keys_kernel,
    attention_bwd_queries_kernel,
    attention_fwd_kernel,
    rope_kernel,
    small_bwd_kernel,
    small_fwd_kernel,
)
from bgs_kernels.pairwise.fused import FUSION, on_device_of, precision

SMALL = 32
"""Up to how many queries and keys one block holds all of several heads."""

ROPE_ENTRIES = 2048
"""Entries of a head that a program turns at a time."""

ROPE_HEADS = 8
"""Heads that a program turns, for which it reads its part of the table once."""


def empty_rows(sets: int, heads: int, rows: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Make (B, H, N, D) laid out as (B, N, H, D), so that a model's transpose and reshape to (B, N, H D) are free."""
    return torch.empty_permuted(
        (sets, heads, rows, width), (0, 2, 1, 3), dtype=like.dtype, device=like.device
    )


def is_small(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor | None) -> bool:
    """Say whether the kernels for a few rows take a call: frames of one place, as in TimeSformer's attention over time.
    They turn nothing: no model turns so few tokens."""
    return cos is None and query.shape[2] <= SMALL and key.shape[2] <= SMALL


def launch_rope(
    x: torch.Tensor, y: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, *, transposed: bool
) -> tuple[torch.Tensor, ...]:
    """Turn rows x and y (B, H, N, D) by a table (N, D) or, ``transposed``, by the transpose of its map."""
    with on_device_of(x):
        sets, heads, rows, width = x.shape
        given = (x,) if y is None else (x, y)
        made = [empty_rows(sets, heads, rows, width, x) for _ in given]
        if not x.numel():
            return tuple(made)
        block = tuning.power_of_two(width, 2, 4096)
        block_rows = max(ROPE_ENTRIES // block, 1)
        n_programs = sets * tuning.blocks(heads, ROPE_HEADS) * tuning.blocks(rows, block_rows)
        rope_kernel[(n_programs, len(given))](
            given[0], given[-1], made[0], made[-1], cos.contiguous(), sin.contiguous(), heads, rows,
            *given[0].stride(), *given[-1].stride(),
            D=width, TRANSPOSED=transposed, BM=block_rows, BD=block, BH=ROPE_HEADS, num_warps=4, **FUSION,
        )  # fmt: skip
        return tuple(made)


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
        query, key, value: (B, H, N, D) and (B, H, M, D) twice, any strides.
        cos, sin: (N, D) float32, if queries and keys are to be turned.
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
        turned_query, turned_key = (torch.empty(0, dtype=query.dtype, device=query.device) for _ in range(2))
        if not attended.numel():
            return attended, lse, turned_query, turned_key
        words: dict[str, Any] = {"HAS_MASK": key_mask is not None, "PRECISION": precision(), "D": width, **FUSION}
        mask = query if key_mask is None else as_numbers(key_mask)
        if is_small(query, key, cos):
            pairs, block, warps = small_blocks(query, key)
            small_fwd_kernel[(tuning.blocks(sets * heads, pairs),)](
                query, key, value, mask, attended, lse, sets, heads, rows, others, scale,
                *query.stride(), *key.stride(), *value.stride(),
                BH=pairs, BM=block, BD=tuning.power_of_two(width, 16, 128), num_warps=warps, **words,
            )  # fmt: skip
            return attended, lse, turned_query, turned_key
        if cos is not None and sin is not None:
            query, key = launch_rope(query, key, cos, sin, transposed=False)

        def run(tiles: tuning.Tiles) -> None:
            first, second = defaults.parts(width)
            attention_fwd_kernel[(sets * heads * tuning.blocks(rows, tiles.rows),)](
                query, key, value, mask, attended, lse, heads, rows, others, scale,
                *query.stride(), *key.stride(), *value.stride(), D1=first, D2=second,
                BM=tiles.rows, BN=tiles.others, num_warps=tiles.warps, num_stages=tiles.stages, **words,
            )  # fmt: skip

        run(chosen("forward", defaults.forward_tiles, query, key, cos, key_mask, run))
        if with_gradient and cos is not None:
            turned_query, turned_key = query, key
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
        attended, lse: what the forward returned.
        query, key, value, cos, sin, key_mask, scale: those of the forward, queries and keys turned already.
        by_query: whether the gradient by the queries is wanted.
        by_keys: whether those by keys and values are.

    Returns:
        (B, H, N, D), (B, H, M, D) and (B, H, M, D), those that are not wanted empty.
    """
    with on_device_of(query):
        sets, heads, rows, width = query.shape
        others = key.shape[2]
        none = functools.partial(torch.empty, 0, dtype=query.dtype, device=query.device)
        small = is_small(query, key, cos)
        by_queries = empty_rows(sets, heads, rows, width, query) if by_query or small else none()
        by_key, by_value = (empty_rows(sets, heads, others, width, query) if by_keys or small else none() for _ in "kv")
        if not query.numel():  # keys that no query looks at
            return by_queries, by_key.zero_(), by_value.zero_()
        words: dict[str, Any] = {"HAS_MASK": key_mask is not None, "PRECISION": precision(), "D": width, **FUSION}
        mask = query if key_mask is None else as_numbers(key_mask)
        lse = lse.contiguous()
        if small:
            pairs, block, warps = small_blocks(query, key)
            small_bwd_kernel[(tuning.blocks(sets * heads, pairs),)](
                query, key, value, mask, upstream, lse, by_queries, by_key, by_value,
                sets, heads, rows, others, scale,
                *query.stride(), *key.stride(), *value.stride(), *upstream.stride(),
                BH=pairs, BM=block, BD=tuning.power_of_two(width, 16, 128), num_warps=warps, **words,
            )  # fmt: skip
            return by_queries if by_query else none(), *((by_key, by_value) if by_keys else (none(), none()))
        if cos is not None and sin is not None:
            cos, sin = cos.contiguous(), sin.contiguous()
        first, second = defaults.parts(width)
        words |= {"D1": first, "D2": second, "HAS_ROPE": cos is not None}
        delta = torch.empty((sets, heads, rows), dtype=torch.float32, device=query.device)

        def run_queries(tiles: tuning.Tiles) -> None:
            attention_bwd_queries_kernel[(sets * heads * tuning.blocks(rows, tiles.rows),)](
                query, key, value, given(cos, query), given(sin, query), mask, attended, upstream, lse, delta,
                by_queries if by_query else query, heads, rows, others, scale,
                *query.stride(), *key.stride(), *value.stride(), *attended.stride(), *upstream.stride(),
                WITH_GRADIENT=by_query,
                BM=tiles.rows, BN=tiles.others, num_warps=tiles.warps, num_stages=tiles.stages, **words,
            )  # fmt: skip

        def run_keys(tiles: tuning.Tiles) -> None:
            attention_bwd_keys_kernel[(sets * heads * tuning.blocks(others, tiles.others),)](
                query, key, value, given(cos, query), given(sin, query), mask, upstream, lse, delta,
                by_key, by_value, heads, rows, others, scale,
                *query.stride(), *key.stride(), *value.stride(), *upstream.stride(),
                BM=tiles.rows, BN=tiles.others, num_warps=tiles.warps, num_stages=tiles.stages, **words,
            )  # fmt: skip

        run_queries(chosen("queries", defaults.query_gradient_tiles, query, key, cos, key_mask, run_queries))
        if by_keys:
            run_keys(chosen("keys", defaults.key_gradient_tiles, query, key, cos, key_mask, run_keys))
        return by_queries, by_key, by_value


def small_blocks(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int, int]:
    """Choose how many heads a program of the kernels for a few rows takes, its block of rows, and its warps: one warp
    a head."""
    block = tuning.power_of_two(max(query.shape[2], key.shape[2]), 16, SMALL)
    return 4, block, 4


def chosen(
    what: str,
    default: Callable[..., tuning.Tiles],
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor | None,
    key_mask: torch.Tensor | None,
    run: Callable[[tuning.Tiles], None],
) -> tuning.Tiles:
    """Choose tiles: the defaults or, if asked for, those that a search finds the fastest."""
    sets, heads, rows, width = query.shape
    raw = query.dtype != torch.float32
    tiles = default(rows, width, raw=raw, precision=precision(), capability=tuning.capability(query.device))
    words = (tuning.name(query.device), query.dtype, precision(), width, cos is not None, key_mask is not None)
    sizes = tuning.size_class(sets * heads, rows, key.shape[2])
    return tuning.autotuned((f"attention {what}", *words, *sizes), tiles, defaults.CANDIDATES, run)


def given(tensor: torch.Tensor | None, stand_in: torch.Tensor) -> torch.Tensor:
    """Give a tensor that a kernel may be handed, some other one in place of none."""
    return stand_in if tensor is None else tensor


def as_numbers(mask: torch.Tensor) -> torch.Tensor:
    """Give truth values in the smallest numbers that a GPU copies to shared memory beside a running product."""
    return mask.to(torch.int32).contiguous()
