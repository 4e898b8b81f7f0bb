"""The definition of ranks with ties, in plain PyTorch."""

from __future__ import annotations

import torch


def fractional_rank(values: torch.Tensor) -> torch.Tensor:
    """Rank values along the last dimension: 1 + the number of smaller values + half the number of other equal ones.

    Args:
        values: (..., P), any floating dtype; NaN is not ranked.

    Returns:
        (..., P) float64, NaN for NaN.
    """
    count = values.shape[-1]
    in_order, order = values.sort(dim=-1)  # NaN comes last, where it changes no rank
    places = torch.arange(count, device=values.device).expand_as(order)
    step = in_order[..., 1:] != in_order[..., :-1]
    edge = torch.ones_like(in_order[..., :1], dtype=torch.bool)
    first = torch.where(torch.cat((edge, step), -1), places, 0).cummax(-1).values
    last = torch.where(torch.cat((step, edge), -1), places, count).flip(-1).cummin(-1).values.flip(-1)
    ranks = (first + last).double() / 2 + 1
    ranks = torch.where(in_order.isnan(), float("nan"), ranks)
    return torch.empty_like(ranks).scatter_(-1, order, ranks)
