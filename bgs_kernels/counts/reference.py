"""The definition of the counts of odd-one-out judgments, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch

from bgs_kernels.checks import readable
from bgs_kernels.triplet.index import check_items


class TripletCounts(NamedTuple):
    """How often two items were judged, and left together: (N, N) int64 each, symmetric with a diagonal of 0."""

    shown: torch.Tensor
    together: torch.Tensor


JUDGMENTS_AT_A_TIME = 1 << 20
"""So that memory does not grow with the number of judgments: 8 MiB a column of int64."""


def triplet_counts(triplets: torch.Tensor, rows: int) -> TripletCounts:
    """Count the pairs of triplets (i, j, k): {i, j} left together, and all of {i, j}, {i, k}, {j, k} shown.

    Args:
        triplets: (T, 3) integer rows; k is the odd one.
        rows: N.

    Raises:
        ValueError: on the CPU, an index is out of range or a triplet names an item twice.
    """
    if readable(triplets):
        check_items(triplets.unsqueeze(0), rows, batched=False)
    together, apart = torch.zeros((2, rows * rows), dtype=torch.int64, device=triplets.device)
    for some in torch.split(triplets, JUDGMENTS_AT_A_TIME):
        i, j, k = some.long().unbind(-1)
        once = torch.ones_like(i)
        together.index_add_(0, i * rows + j, once)
        apart.index_add_(0, i * rows + k, once).index_add_(0, j * rows + k, once)
    together, apart = (each.view(rows, rows) + each.view(rows, rows).mT for each in (together, apart))
    return TripletCounts(shown=apart + together, together=together)
