"""The number format that a model computes in, by what the device computes in."""

from __future__ import annotations

import torch

from bgs.config import Precision


def chosen_precision(precision: Precision, *, on_gpu: bool) -> Precision:
    """Resolve `auto`: bf16 on a GPU that computes in it, else fp32.

    Args:
        precision: what was asked for.
        on_gpu: whether the model runs on one.
    """
    if precision != "auto":
        return precision
    # Older GPUs emulate bf16, slowly.
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
