"""Attention by the ``flash_attn`` package, where it is installed; queries and keys are turned before it."""

from __future__ import annotations

import torch
from flash_attn import flash_attn_func

from bgs_kernels.attention.library import turn
from bgs_kernels.attention.measured import passed_over
from bgs_kernels.dispatch import Request
from bgs_kernels.tracing import is_transformed

WIDEST = 256
"""The widest head that the package's kernels take."""


def unavailable() -> str | None:
    """Say why the package cannot run on this machine, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    return None if capability >= (8, 0) else f"compute capability {capability[0]}.{capability[1]}, below 8.0"


def why_not(request: Request) -> str | None:
    """Say why the package cannot serve a call, or None."""
    query = request.tensors["query"]
    if any(map(is_transformed, request.tensors.values())):
        return "torch.func and forward-mode derivatives need backend='reference'"
    if query.device.type != "cuda":
        return f"query on {query.device.type}, not on a CUDA device"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"query of {str(query.dtype).removeprefix('torch.')}, not of half precision"
    if query.shape[3] > WIDEST:
        return f"query of more than {WIDEST} columns"
    if "key_mask" in request.tensors:
        return "it has no mask of keys"
    return None


def passes_over(request: Request) -> str | None:
    """Say why "auto" takes another backend, or None."""
    return passed_over("flash", request)


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
    """Compute attention; arguments and results as ``bgs_kernels.attention.reference.attention``.

    The gradient by the queries is summed in the order in which programs come, unless
    ``torch.use_deterministic_algorithms`` asks for one order.
    """
    if cos is not None and sin is not None:
        query, key = turn(query, key, cos, sin)
    attended, lse, _ = flash_attn_func(
        *(rows.transpose(1, 2) for rows in (query, key, value)),
        softmax_scale=scale,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        return_attn_probs=True,
    )
    return attended.transpose(1, 2), lse if return_lse else None
