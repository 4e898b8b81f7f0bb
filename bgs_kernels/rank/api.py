"""The public op ``fractional_rank``: its argument, its check, and the choice of a backend."""

from __future__ import annotations

import torch

from bgs_kernels import dispatch
from bgs_kernels.checks import check_tensor


def fractional_rank(values: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Rank values along the last dimension, ties sharing the mean of their ranks.

    NaN stands for a value that was not observed: it takes no rank from the others, and its own is NaN. Infinities are
    ranked, and -0 equals 0. Without NaN this is ``scipy.stats.rankdata(values, axis=-1)``.

    Args:
        values: (..., P) float16, bfloat16, float32 or float64.
        backend: "auto", "native" or "reference".

    Returns:
        (..., P) float64 ranks, 1 for the smallest. Ranks are constants: no gradient passes through them.

    Raises:
        TypeError: values is no tensor.
        ValueError: its dtype or shape, or the backend, is not one of those.
    """
    check_tensor("values", values, kind="a floating-point")
    if values.dim() == 0:
        raise ValueError("values: expected shape (..., P), got ()")
    ranks: torch.Tensor = dispatch.run("fractional_rank", backend, {"values": values.detach()})
    return ranks


dispatch.register("fractional_rank", "native", "bgs_kernels.rank.native")
dispatch.register("fractional_rank", "reference", "bgs_kernels.rank.reference")
