"""LoRA projections in plain PyTorch: the definition that every other backend is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bgs_kernels.lora.dropout import dropout_keep
from bgs_kernels.lora.projection import Projection


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    lora_A: torch.Tensor | None = None,
    lora_B: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    *,
    scaling: float,
    dropout_p: float,
) -> torch.Tensor:
    """Compute x W^T + b + scaling * dropout(x) A^T B^T.

    The update is computed in the adapter's dtype and added to the frozen layer's output before the result is rounded
    to that dtype, as peft does (Hu et al., 2021, arXiv 2106.09685).

    Args:
        x: (..., K).
        weight: (O, K), of x's dtype.
        bias: (O,), of x's dtype.
        lora_A: (r, K).
        lora_B: (O, r).
        seed: int64, one element: the mask is ``dropout_keep``'s; without it torch's own dropout draws one.
        scaling: of the update.
        dropout_p: probability with which an entry of x is dropped from the update; the others are scaled by
            1 / (1 - dropout_p).

    Returns:
        (..., O) of x's dtype.
    """
    projected = F.linear(x, weight, bias)
    if lora_A is None or lora_B is None:
        return projected
    low = x.to(lora_A.dtype)
    if dropout_p > 0 and seed is None:
        low = F.dropout(low, dropout_p)
    elif dropout_p > 0 and seed is not None:
        keep = dropout_keep(seed, low.shape[:-1].numel(), low.shape[-1], dropout_p).view(low.shape)
        low = torch.where(keep, low * (1 / (1 - dropout_p)), 0)
    update = F.linear(F.linear(low, lora_A), lora_B)
    return (projected + update * scaling).to(x.dtype)


def lora_qkv(
    x: torch.Tensor,
    seed: torch.Tensor | None = None,
    *,
    projections: tuple[Projection, ...],
    dropout_p: float,
) -> tuple[torch.Tensor, ...]:
    """Compute several projections of one input; the i-th has ``seed[i]``, or draws a mask of its own."""
    return tuple(
        lora_linear(
            x,
            projection.weight,
            projection.bias,
            projection.lora_A,
            projection.lora_B,
            None if seed is None else seed[place],
            scaling=projection.scaling,
            dropout_p=dropout_p,
        )
        for place, projection in enumerate(projections)
    )
