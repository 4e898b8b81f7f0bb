"""Pairwise distances by the Triton kernels: the operators that ``torch.library`` knows, their launches, and the
implementation that dispatch calls. Whether the kernels can serve a call, all ops decide here.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

import torch

from bgs_kernels import tuning
from bgs_kernels.dispatch import Request
from bgs_kernels.pairwise.kernels import pairwise_bwd_kernel, pairwise_fwd_kernel, pairwise_rows_kernel
from bgs_kernels.tracing import is_transformed, refuse_second_derivative

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

FUSION = {"enable_fp_fusion": True}
"""Said aloud because compilers differ in what they assume."""

ROWS = 16
"""Rows whose statistics a program makes."""

MOST_COLUMNS = 4096
"""The widest rows that a program can hold one of."""

SERVED = (torch.float16, torch.bfloat16, torch.float32)


def unavailable() -> str | None:
    """Say why no Triton kernel can run on this machine, or None."""
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"


def why_not(request: Request) -> str | None:
    """Say why the kernels cannot serve a call, or None."""
    for name in ("x", "y", "embeddings", "target_embeddings"):
        rows = request.tensors.get(name)
        if rows is None:
            continue
        if is_transformed(rows):
            return "torch.func and forward-mode derivatives need backend='reference'"
        if rows.device.type != "cuda" and not (INTERPRETED and rows.device.type == "cpu"):
            return f"{name} on {rows.device.type}, not on a CUDA device"
        if rows.dtype not in SERVED:
            return f"{name} of {str(rows.dtype).removeprefix('torch.')}"
        if rows.shape[-1] > MOST_COLUMNS:
            return f"{name} of more than {MOST_COLUMNS} columns"
    return None


def passes_over(request: Request) -> str | None:
    """Say why "auto" takes another backend, or None."""
    return "the interpreter is slow" if INTERPRETED else None


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """Make the device of a tensor the current one, on which kernels are launched whatever they are given."""
    context: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return context


def precision() -> str:
    """Give the precision of float32 products that ``torch.set_float32_matmul_precision`` asks for, in Triton's word."""
    return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[torch.get_float32_matmul_precision()]


def is_raw(rows: torch.Tensor | None, metric: str) -> bool:
    """Say whether rows are multiplied as they are rather than scaled, centred and in float32."""
    return rows is not None and rows.dtype != torch.float32 and metric in ("cosine", "dot")


@torch.library.custom_op("bgs_kernels::pairwise_distance_forward", mutates_args=())
def pairwise_distance_forward(
    x: torch.Tensor, y: torch.Tensor | None, metric: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the distances (B, N, M) of rows x (B, N, D) to rows y (B, M, D), x itself by default, and what the
    backward needs: the statistics (B, 3, N) and (B, 3, M) of the rows and their origin (B, D)."""
    with on_device_of(x):
        sets, rows, columns = x.shape
        others = x if y is None else y
        count = others.shape[1]
        options: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
        x_stats = torch.empty((sets, 3, rows), **options)
        y_stats = torch.empty((sets, 3, 0 if y is None else count), **options)
        origin = torch.empty((sets, columns), **options)
        distances = torch.empty((sets, rows, count), **options)
        if not distances.numel():
            return distances, x_stats, y_stats, origin
        strides = (*x.stride(), *others.stride())
        n_programs = tuning.blocks(rows, ROWS) + 1 + (0 if y is None else tuning.blocks(count, ROWS))
        pairwise_rows_kernel[(n_programs, sets)](
            x, x_stats, origin, others, y_stats, rows, count, columns, *strides,
            METRIC=metric, BM=ROWS, BK=tuning.power_of_two(columns, 16, 256), num_warps=4, **FUSION,
        )  # fmt: skip
        raw = is_raw(x, metric)
        tiles = tuning.forward_tiles(
            max(rows, count),
            columns,
            raw=raw,
            precision=precision(),
            heavy=True,
            capability=tuning.capability(x.device),
        )

        def run(tiles: tuning.Tiles) -> None:
            pairwise_fwd_kernel[(tuning.blocks(rows, tiles.rows) * tuning.blocks(count, tiles.rows), sets)](
                x, x_stats, others, x_stats if y is None else y_stats, origin, distances,
                rows, count, columns, *strides,
                METRIC=metric, RAW=raw, PRECISION=precision(), BM=tiles.rows, BK=tiles.inner,
                num_warps=tiles.warps, num_stages=tiles.stages, **FUSION,
            )  # fmt: skip

        # every run writes all distances
        sizes = tuning.size_class(sets, rows, count, columns)
        key = ("pairwise", tuning.name(x.device), x.dtype, precision(), metric, *sizes)
        run(tuning.autotuned(key, tiles, tuning.FORWARD_CANDIDATES, run))
        return distances, x_stats, y_stats, origin


@pairwise_distance_forward.register_fake
def _(x, y, metric):  # type: ignore[no-untyped-def]
    sets, rows, columns = x.shape
    count = rows if y is None else y.shape[1]
    shapes = ((sets, rows, count), (sets, 3, rows), (sets, 3, 0 if y is None else count), (sets, columns))
    return tuple(x.new_empty(shape, dtype=torch.float32) for shape in shapes)


@torch.library.custom_op("bgs_kernels::pairwise_distance_backward", mutates_args=())
def pairwise_distance_backward(
    upstream: torch.Tensor,
    distances: torch.Tensor,
    x: torch.Tensor,
    x_stats: torch.Tensor,
    y: torch.Tensor,
    y_stats: torch.Tensor,
    origin: torch.Tensor,
    metric: str,
    symmetric: bool,
) -> torch.Tensor:
    """Compute the gradient (B, N, D) by rows x of distances (B, N, M) to rows y; ``symmetric`` if y is x."""
    with on_device_of(x):
        sets, rows, columns = x.shape
        gradient = torch.empty((sets, rows, columns), dtype=x.dtype, device=x.device)
        if not distances.numel():
            return gradient.zero_()
        raw = is_raw(x, metric)
        tiles = tuning.backward_tiles(
            rows,
            columns,
            raw=raw,
            precision=precision(),
            heavy=True,
            capability=tuning.capability(x.device),
            panels=False,
        )
        pairwise_bwd_kernel[(tuning.blocks(rows, tiles.rows), tuning.blocks(columns, tiles.width), sets)](
            x, x_stats, y, y_stats, origin, distances, upstream, gradient, rows, y.shape[1], columns,
            *x.stride(), *y.stride(), *distances.stride(), *upstream.stride(),
            METRIC=metric, RAW=raw, SYMMETRIC=symmetric, PRECISION=precision(),
            BM=tiles.rows, BN=tiles.others, BD=tiles.width, num_warps=tiles.warps, num_stages=tiles.stages, **FUSION,
        )  # fmt: skip
        return gradient


@pairwise_distance_backward.register_fake
def _(upstream, distances, x, *others):  # type: ignore[no-untyped-def]
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, y, metric = inputs
    distances, x_stats, y_stats, origin = output
    ctx.mark_non_differentiable(x_stats, y_stats, origin)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(distances, x, x_stats, y, y_stats, origin)
    ctx.metric = metric


def _backward(ctx, upstream, *others):  # type: ignore[no-untyped-def]
    distances, x, x_stats, y, y_stats, origin = ctx.saved_tensors
    if upstream is None:
        return None, None, None
    if y is None:
        return (
            pairwise_distance_backward(upstream, distances, x, x_stats, x, x_stats, origin, ctx.metric, True),
            None,
            None,
        )
    by_x = by_y = None
    if ctx.needs_input_grad[0]:
        by_x = pairwise_distance_backward(upstream, distances, x, x_stats, y, y_stats, origin, ctx.metric, False)
    if ctx.needs_input_grad[1]:
        by_y = pairwise_distance_backward(upstream.mT, distances.mT, y, y_stats, x, x_stats, origin, ctx.metric, False)
    return by_x, by_y, None


torch.library.register_autograd(pairwise_distance_forward, _backward, setup_context=_save)
torch.library.register_autograd(pairwise_distance_backward, refuse_second_derivative)


def pairwise_distance(x: torch.Tensor, y: torch.Tensor | None = None, *, metric: str = "cosine") -> torch.Tensor:
    """Compute distances; arguments and result as ``bgs_kernels.pairwise.reference.pairwise_distance``."""
    leading = x.shape[:-2]
    x = x.reshape(leading.numel(), *x.shape[-2:])
    if y is not None:
        y = y.reshape(leading.numel(), *y.shape[-2:])
    distances: torch.Tensor = pairwise_distance_forward(x, y, metric)[0]
    return distances.reshape(*leading, *distances.shape[-2:])
