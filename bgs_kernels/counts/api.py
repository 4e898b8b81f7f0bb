"""The public op ``triplet_counts``: its arguments, their checks, and the choice of a backend."""

from __future__ import annotations

import numbers

import torch

from bgs_kernels import dispatch
from bgs_kernels.checks import check_tensor
from bgs_kernels.counts.reference import TripletCounts


def triplet_counts(triplets: torch.Tensor, rows: int, *, backend: str = "auto") -> TripletCounts:
    """Count, for every pair of items, the judgments that showed both and those that left both together.

    Args:
        triplets: (T, 3) integer rows (i, j, k), i and j the pair left together and k the odd one. Checked on the CPU
            only.
        rows: N, the number of items.
        backend: "auto", "native" or "reference".

    Returns:
        ``TripletCounts`` with ``shown`` and ``together``, both (N, N) int64, symmetric with a diagonal of 0. A judgment
        adds to three pairs shown and to one pair together.

    Raises:
        TypeError: triplets is no tensor.
        ValueError: the dtype or shape of triplets, the number of rows or the backend is not one of those, an index is
            out of range, or a triplet names an item twice.
    """
    check_tensor("triplets", triplets, kind="an integer")
    if triplets.dim() != 2 or triplets.shape[1] != 3:
        raise ValueError(f"triplets: expected shape (T, 3), got {tuple(triplets.shape)}")
    if not isinstance(rows, numbers.Integral) or isinstance(rows, bool) or rows < 0:
        raise ValueError(f"rows: expected an integer >= 0, got {rows!r}")
    shown, together = dispatch.run("triplet_counts", backend, {"triplets": triplets}, rows=int(rows))
    return TripletCounts(shown, together)


dispatch.register("triplet_counts", "native", "bgs_kernels.counts.native")
dispatch.register("triplet_counts", "reference", "bgs_kernels.counts.reference")
