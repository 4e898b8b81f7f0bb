"""Counts of odd-one-out judgments by csrc/cpu/counts.cpp: in one pass, which checks the triplets as well."""

from __future__ import annotations

import torch

from bgs_kernels import native
from bgs_kernels.dispatch import Request
from bgs_kernels.triplet.index import check_items

TRIPLETS_END = 2**32
"""Counts are added up in 32 bits: there have to be fewer triplets."""


def unavailable() -> str | None:
    """Say why the compiled module is not there, or None."""
    return native.MISSING


def why_not(request: Request) -> str | None:
    """Say why the triplets cannot be counted here, or None."""
    if len(request.tensors["triplets"]) >= TRIPLETS_END:
        return f"counts of {TRIPLETS_END} triplets do not fit 32 bits"
    return native.elsewhere(request)


def compute(triplets: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Count (T, 3) triplets; arguments, results and errors as ``bgs_kernels.counts.reference.triplet_counts``."""
    shown, together = (torch.empty((rows, rows), dtype=torch.int64, device="cpu") for _ in range(2))
    sound = native.module.triplet_counts(
        native.argument(triplets),
        len(triplets),
        rows,
        native.argument(shown),
        native.argument(together),
        native.threads(),
    )
    if not sound:
        check_items(triplets.unsqueeze(0), rows, batched=False)  # finds the row, and raises
    return shown, together


triplet_counts = torch.library.custom_op("bgs_kernels::triplet_counts", compute, mutates_args=())


@triplet_counts.register_fake
def _(triplets, rows):  # type: ignore[no-untyped-def]
    shape = (rows, rows)
    return triplets.new_empty(shape, dtype=torch.int64), triplets.new_empty(shape, dtype=torch.int64)
