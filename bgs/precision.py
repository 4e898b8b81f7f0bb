"""The number format that a model computes in, by what the device computes in."""

from __future__ import annotations

import torch

from bgs.config import Precision


def chosen_precision(precision: Precision) -> Precision:
    """Resolve `auto`: bf16 where there is a GPU that computes in it, else fp32."""
    if precision != "auto":
        return precision
    # Older GPUs emulate bf16, slowly.
    fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if fast else "fp32"
