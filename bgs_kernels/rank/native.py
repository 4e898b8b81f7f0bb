"""Ranks by the radix sorts of csrc: its own on the CPU, CUB's on a CUDA device."""

from __future__ import annotations

import torch

from bgs_kernels import native
from bgs_kernels.dispatch import Request

MOST_ON_CUDA = 2**32
"""Values on a CUDA device are counted in 32 bits."""


def unavailable() -> str | None:
    """Say why the compiled module is not there, or None."""
    return native.MISSING


def why_not(request: Request) -> str | None:
    """Say why the values cannot be ranked here, or None."""
    values = request.tensors["values"]
    if values.is_cuda:
        sets, count = values.shape[:-1].numel(), values.shape[-1]
        if sets * count >= MOST_ON_CUDA:
            return f"more than {MOST_ON_CUDA - 1} values on a CUDA device"
        return native.why_not_cuda()
    return native.elsewhere(request)


def compute(values: torch.Tensor) -> torch.Tensor:
    """Rank values (..., P); arguments and result as ``bgs_kernels.rank.reference.fractional_rank``."""
    columns = values.shape[-1]
    ranks = torch.empty(values.shape, dtype=torch.float64, device=values.device)
    if values.numel() == 0:
        return ranks
    # a rank is the same in any wider dtype
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    rows = wide.contiguous().view(-1, columns)
    if values.is_cuda:
        index, stream = native.device_and_stream(values)
        needed = native.module.cuda_fractional_rank_workspace(len(rows), columns, index)
        workspace = torch.empty(needed, dtype=torch.uint8, device=values.device)
        native.module.cuda_fractional_rank(
            native.argument(rows),
            len(rows),
            columns,
            native.argument(ranks.view(-1, columns)),
            workspace.data_ptr(),
            needed,
            index,
            stream,
        )
        return ranks
    native.module.fractional_rank(
        native.argument(rows), len(rows), columns, native.argument(ranks.view(-1, columns)), native.threads()
    )
    return ranks


fractional_rank = torch.library.custom_op("bgs_kernels::fractional_rank", compute, mutates_args=())


@fractional_rank.register_fake
def _(values):  # type: ignore[no-untyped-def]
    return values.new_empty(values.shape, dtype=torch.float64)
