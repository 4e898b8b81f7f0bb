"""Ranks by the radix sort in csrc/cpu/ranks.cpp."""

from __future__ import annotations

import torch

from bgs_kernels import native
from bgs_kernels.dispatch import Request


def unavailable() -> str | None:
    """Say why the compiled module is not there, or None."""
    return native.MISSING


def why_not(request: Request) -> str | None:
    """Say why the values cannot be ranked here, or None."""
    return native.elsewhere(request)


def compute(values: torch.Tensor) -> torch.Tensor:
    """Rank values (..., P); arguments and result as ``bgs_kernels.rank.reference.fractional_rank``."""
    columns = values.shape[-1]
    ranks = torch.empty(values.shape, dtype=torch.float64)
    if values.numel() == 0:
        return ranks
    # a rank is the same in any wider dtype
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    rows = wide.contiguous().view(-1, columns)
    native.module.fractional_rank(
        native.argument(rows), len(rows), columns, native.argument(ranks.view(-1, columns)), native.threads()
    )
    return ranks


fractional_rank = torch.library.custom_op("bgs_kernels::fractional_rank", compute, mutates_args=())


@fractional_rank.register_fake
def _(values):  # type: ignore[no-untyped-def]
    return values.new_empty(values.shape, dtype=torch.float64)
