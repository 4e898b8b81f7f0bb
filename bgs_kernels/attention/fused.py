"""Attention and rotary embedding by the Triton kernels: the operators that ``torch.library`` knows, and the
implementations that dispatch calls.
"""

from __future__ import annotations

import torch

from bgs_kernels.attention.launch import empty_rows, launch_backward, launch_forward, launch_rope
from bgs_kernels.attention.measured import passed_over
from bgs_kernels.dispatch import Request
from bgs_kernels.pairwise.fused import INTERPRETED, MOST_COLUMNS, SERVED, unavailable
from bgs_kernels.tracing import is_eager, is_transformed, refuse_second_derivative

__all__ = ["attention", "passes_over", "rope_3d", "unavailable", "why_not"]

WIDEST = 128
"""The widest head of which a program can hold the outputs of a block of queries."""


def why_not(request: Request) -> str | None:
    """Say why the kernels cannot serve a call, or None."""
    name, rows = next(iter(request.tensors.items()))
    if any(map(is_transformed, request.tensors.values())):
        return "torch.func and forward-mode derivatives need backend='reference'"
    if rows.device.type != "cuda" and not (INTERPRETED and rows.device.type == "cpu"):
        return f"{name} on {rows.device.type}, not on a CUDA device"
    if rows.dtype not in SERVED:
        return f"{name} of {str(rows.dtype).removeprefix('torch.')}"
    for table in ("cos", "sin"):
        if table in request.tensors and request.tensors[table].dtype != torch.float32:
            return f"{table} of {str(request.tensors[table].dtype).removeprefix('torch.')}"
    widest = MOST_COLUMNS if name == "x" else WIDEST
    if rows.shape[-1] > widest:
        return f"{name} of more than {widest} columns"
    if request.options.get("scale") == 0:
        return "a scale of 0, by which the kernels would multiply the scores -inf of masked keys"
    return None


def passes_over(request: Request) -> str | None:
    """Say why "auto" takes another backend, or None."""
    if INTERPRETED:
        return "the interpreter is slow"
    return passed_over("triton", request) if "query" in request.tensors else None


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, transposed: bool) -> torch.Tensor:
    """Turn rows (B, H, N, D) by a table or, ``transposed``, by the transpose of its map, as gradients are."""
    return launch_rope((x,), cos, sin, transposed=transposed)[0]


rope_3d_turn = torch.library.custom_op("bgs_kernels::rope_3d_turn", turn, mutates_args=())


@rope_3d_turn.register_fake
def _(x, cos, sin, transposed):  # type: ignore[no-untyped-def]
    return empty_rows(*x.shape, x)


def _save_table(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, cos, sin, transposed = inputs
    ctx.save_for_backward(cos, sin)
    ctx.transposed = transposed


def _turn_back(ctx, upstream):  # type: ignore[no-untyped-def]
    gradient = rope_3d_turn(upstream, *ctx.saved_tensors, not ctx.transposed) if ctx.needs_input_grad[0] else None
    return gradient, None, None, None


torch.library.register_autograd(rope_3d_turn, _turn_back, setup_context=_save_table)


def compute(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    key_mask: torch.Tensor | None,
    scale: float,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the outputs (B, H, N, D), the log-sum-exps (B, H, N) and, for a backward, the turned queries and keys."""
    return launch_forward(query, key, value, cos, sin, key_mask, scale, with_gradient=with_gradient)


attention_forward = torch.library.custom_op("bgs_kernels::attention_forward", compute, mutates_args=())


@attention_forward.register_fake
def _(query, key, value, cos, sin, key_mask, scale, with_gradient):  # type: ignore[no-untyped-def]
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    turned = (query, key) if with_gradient and cos is not None else ()
    kept = [empty_rows(*x.shape, x) for x in turned] or [query.new_empty(0), query.new_empty(0)]
    return empty_rows(*query.shape, query), lse, *kept


def differentiate(
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
    by_query: bool,
    by_keys: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the gradients by queries, keys and values, given the forward's results and what was turned, turned."""
    return launch_backward(
        upstream, attended, lse, query, key, value, cos, sin, key_mask, scale, by_query=by_query, by_keys=by_keys
    )


attention_backward = torch.library.custom_op("bgs_kernels::attention_backward", differentiate, mutates_args=())


@attention_backward.register_fake
def _(upstream, attended, lse, query, key, value, cos, sin, key_mask, scale, by_query, by_keys):  # type: ignore[no-untyped-def]
    wanted = ((query, by_query), (key, by_keys), (value, by_keys))
    return tuple(empty_rows(*x.shape, x) if is_wanted else x.new_empty(0) for x, is_wanted in wanted)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    query, key, value, cos, sin, key_mask, scale, _ = inputs
    attended, lse, *turned = output
    if cos is not None:
        query, key = turned
    ctx.mark_non_differentiable(lse, *turned)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(attended, lse, query, key, value, cos, sin, key_mask)
    ctx.scale = scale


def _backward(ctx, upstream, *others):  # type: ignore[no-untyped-def]
    by_query, by_key, by_value = ctx.needs_input_grad[:3]
    if upstream is None or not (by_query or by_key or by_value):
        return (None,) * 8
    # where a gradient of the gradient is wanted, the operator that refuses one is on record
    run = attention_backward if torch.is_grad_enabled() or not is_eager(upstream) else differentiate
    gradients = run(upstream, *ctx.saved_tensors, ctx.scale, by_query, by_key or by_value)
    wanted = zip(gradients, (by_query, by_key, by_value), strict=True)
    return (*(gradient if is_wanted else None for gradient, is_wanted in wanted), *(None,) * 5)


torch.library.register_autograd(attention_forward, _backward, setup_context=_save)
torch.library.register_autograd(attention_backward, refuse_second_derivative)


class AttentionFunction(torch.autograd.Function):
    """The operator without the dispatcher, which costs more than the launch of a small attention."""

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        output = compute(*inputs)
        _save(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    key_mask: torch.Tensor | None = None,
    *,
    scale: float,
    return_lse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute attention; arguments and results as ``bgs_kernels.attention.reference.attention``."""
    with_gradient = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    run = AttentionFunction.apply if is_eager(query) else attention_forward
    attended, lse, _, _ = run(query, key, value, cos, sin, key_mask, scale, with_gradient)  # type: ignore[no-untyped-call]
    return attended, lse


def rope_3d(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn queries or keys; arguments and result as ``bgs_kernels.attention.reference.rope_3d``."""
    turned: torch.Tensor = rope_3d_turn(x, cos, sin, False)
    return turned
