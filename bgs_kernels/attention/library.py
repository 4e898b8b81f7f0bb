"""Attention by PyTorch's ``scaled_dot_product_attention``, which chooses among its own kernels (flash, cuDNN, memory
efficient, and one for the CPU); queries and keys are turned before it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bgs_kernels import dispatch
from bgs_kernels.attention.api import rope_3d
from bgs_kernels.dispatch import Request
from bgs_kernels.tracing import is_transformed


def why_not(request: Request) -> str | None:
    """Say why the library cannot serve a call, or None."""
    if any(map(is_transformed, request.tensors.values())):
        return "torch.func and forward-mode derivatives need backend='reference'"
    return "it does not give the log-sum-exp" if request.options["return_lse"] else None


def turn(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn queries and keys before a library's attention, which has no backend for it of its own."""
    backend = dispatch.automatic("rope_3d", Request({"x": query, "cos": cos, "sin": sin}))
    return rope_3d(query, cos, sin, backend=backend), rope_3d(key, cos, sin, backend=backend)


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
    if cos is not None and sin is not None:
        query, key = turn(query, key, cos, sin)
    if key_mask is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale), None
    empty = ~key_mask.any(-1)[:, None, None, None]
    taking_part = key_mask[:, None, None, :] | empty
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=taking_part, scale=scale)
    return attended.masked_fill(empty, 0.0), None
