"""Pairwise distances by csrc: the operators that ``torch.library`` knows, and what dispatch calls."""

from __future__ import annotations

import torch

from bgs_kernels import native
from bgs_kernels.dispatch import Request
from bgs_kernels.tracing import is_transformed, refuse_second_derivative

SERVED = (torch.float16, torch.bfloat16, torch.float32)


def unavailable() -> str | None:
    """Say why csrc cannot run on this machine, or None."""
    return native.MISSING


def why_not(request: Request) -> str | None:
    """Say why csrc cannot serve a call, or None."""
    for name, rows in request.tensors.items():
        if is_transformed(rows):
            return "torch.func and forward-mode derivatives need backend='reference'"
        if rows.device.type != "cpu":
            return f"{name} on {rows.device.type}, not on the CPU"
        if rows.dtype not in SERVED:
            return f"{name} of {str(rows.dtype).removeprefix('torch.')}"
    return None


def passes_over(request: Request) -> str | None:
    """Say why "auto" takes another backend, or None."""
    if torch.is_grad_enabled() and any(rows.requires_grad for rows in request.tensors.values()):
        return "only the reference can be differentiated twice"
    return None


@torch.library.custom_op("bgs_kernels::native_pairwise_distance", mutates_args=())
def native_pairwise_distance(x: torch.Tensor, y: torch.Tensor | None, metric: str) -> torch.Tensor:
    """Compute the distances (B, N, M) of rows x (B, N, D) to rows y (B, M, D), x itself by default."""
    sets, rows, columns = x.shape
    others = rows if y is None else y.shape[1]
    distances = torch.empty((sets, rows, others), dtype=torch.float32, device="cpu")
    assert native.module is not None
    native.module.pairwise_distance(
        (sets, rows, others, columns),
        native.argument(x),
        native.argument(y),
        native.METRICS[metric],
        native.threads(),
        distances.data_ptr(),
        None,
        0,
        0,
    )
    return distances


@native_pairwise_distance.register_fake
def _(x, y, metric):  # type: ignore[no-untyped-def]
    others = x.shape[1] if y is None else y.shape[1]
    return x.new_empty((*x.shape[:2], others), dtype=torch.float32)


@torch.library.custom_op("bgs_kernels::native_pairwise_distance_backward", mutates_args=())
def native_pairwise_distance_backward(
    upstream: torch.Tensor, distances: torch.Tensor, x: torch.Tensor, y: torch.Tensor | None, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients of distances (B, N, M) by x and by y, in their shapes; the latter is empty if y is None."""
    sets, rows, columns = x.shape
    others = rows if y is None else y.shape[1]
    by_x = torch.empty((sets, rows, columns), dtype=torch.float32, device="cpu")
    by_y = torch.empty((sets, 0 if y is None else others, columns), dtype=torch.float32, device="cpu")
    assert native.module is not None
    native.module.pairwise_distance(
        (sets, rows, others, columns),
        native.argument(x),
        native.argument(y),
        native.METRICS[metric],
        native.threads(),
        distances.data_ptr(),
        native.argument(upstream),
        by_x.data_ptr(),
        by_y.data_ptr(),
    )
    return by_x.to(x.dtype), by_y.to(x.dtype)


@native_pairwise_distance_backward.register_fake
def _(upstream, distances, x, y, metric):  # type: ignore[no-untyped-def]
    by_y = x.new_empty((len(x), 0, x.shape[2])) if y is None else y.new_empty(y.shape)
    return x.new_empty(x.shape), by_y


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, y, ctx.metric = inputs
    ctx.save_for_backward(x, y, output)


def _backward(ctx, upstream):  # type: ignore[no-untyped-def]
    x, y, distances = ctx.saved_tensors
    by_x, by_y = native_pairwise_distance_backward(upstream, distances, x, y, ctx.metric)
    return by_x, None if y is None else by_y, None


torch.library.register_autograd(native_pairwise_distance, _backward, setup_context=_save)
torch.library.register_autograd(native_pairwise_distance_backward, refuse_second_derivative)


def pairwise_distance(x: torch.Tensor, y: torch.Tensor | None = None, *, metric: str = "cosine") -> torch.Tensor:
    """Compute distances; arguments and result as ``bgs_kernels.pairwise.reference.pairwise_distance``."""
    leading = x.shape[:-2]
    x = x.reshape(leading.numel(), *x.shape[-2:])
    if y is not None:
        y = y.reshape(leading.numel(), *y.shape[-2:])
    distances: torch.Tensor = native_pairwise_distance(x, y, metric)
    return distances.reshape(*leading, *distances.shape[-2:])
