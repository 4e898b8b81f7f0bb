"""The exact hybrid loss and its gradient, computed by blocks, so that no N x N matrix is ever held: what contenders are
compared with, at sizes that the reference cannot reach in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

BLOCK = 2048
"""Rows of the distance matrix that are held at a time."""

TRIPLETS_AT_A_TIME = 65_536

SECONDS = 10.0
"""How long the float64 products may take before float32 ones are used instead."""


def exact(
    embeddings: torch.Tensor,
    triplets: torch.Tensor,
    target: torch.Tensor | None = None,
    *,
    target_embeddings: torch.Tensor | None = None,
    alpha: float = 0.7,
    beta: float = 0.3,
    temperature: float = 1.0,
    block: int = BLOCK,
    products: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``bgs_kernels.hybrid_loss`` with the metric "cosine", the form "softmax" and the RSA "pearson", and its
    gradient. No embedding may be zero, and the geometry may not be degenerate.

    Args:
        embeddings: (N, D).
        triplets: (T, 3) integer rows (i, j, k); k is the odd one.
        target: (N, N), NaN where unobserved.
        target_embeddings: (N, E): their cosine distances are the target.
        alpha, beta, temperature: as in ``hybrid_loss``.
        block: rows of the distance matrix that are held at a time.
        products: float64, or float32 for products of unit vectors in float32 without TF32, everything else, sums of
            blocks included, still in float64.

    Returns:
        the loss, a float64 scalar, and the gradient (N, D) in float64.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        x = embeddings.detach().double()
        length = x.norm(dim=-1, keepdim=True)
        unit = x / length
        towards = torch.zeros_like(unit)  # the gradient for the unit vectors
        triplet_term = _triplets(unit, triplets, towards, alpha=alpha, temperature=temperature)
        far = None if target_embeddings is None else _unit(target_embeddings).to(products)
        near = unit.to(products)
        pairs = _Pairs(near, far, target, block)
        correlation = _correlation(pairs, towards, beta=beta)
        along = (towards * unit).sum(-1, keepdim=True)
        return alpha * triplet_term - beta * correlation, (towards - along * unit) / length
    finally:
        torch.set_float32_matmul_precision(precision)


def products_dtype(rows: int, columns: int, device: torch.device) -> torch.dtype:
    """Choose the dtype of the products: float64 where this device computes them in ``SECONDS``, else float32.

    Args:
        rows: N.
        columns: D + E.
        device: the device; some GPUs are 64 times slower in float64.
    """
    if device.type != "cuda":
        return torch.float64
    probe = torch.randn(2048, 2048, dtype=torch.float64, device=device)
    probe @ probe
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    probe @ probe
    end.record()
    end.synchronize()
    rate = 2e3 * len(probe) ** 3 / start.elapsed_time(end)
    return torch.float64 if 4.0 * rows**2 * columns / rate < SECONDS else torch.float32


class _Pairs:
    """The distances and targets of all pairs i < j, a block of rows after the other."""

    def __init__(self, near: torch.Tensor, far: torch.Tensor | None, target: torch.Tensor | None, block: int) -> None:
        self.near, self.far, self.target, self.block = near, far, target, block

    def __iter__(self) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Give rows, columns, and of these distances, targets (0 where unobserved) and weights in float64."""
        count = len(self.near)
        for begin in range(0, count, self.block):
            rows, columns = slice(begin, min(begin + self.block, count)), slice(begin, count)
            distances = 1 - (self.near[rows] @ self.near[columns].mT).double()
            if self.far is not None:
                targets = 1 - (self.far[rows] @ self.far[columns].mT).double()
                weights = torch.ones_like(targets).triu_(1)
            else:
                assert self.target is not None
                targets = self.target[rows, columns].double()
                weights = (~targets.isnan()).double().triu_(1)
                targets = targets.nan_to_num_(nan=0.0)
            yield rows, columns, distances, targets, weights


def _unit(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().double()
    unit: torch.Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit


def _correlation(pairs: _Pairs, towards: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Compute Pearson's r, and add the gradient of -beta r for the unit vectors to ``towards``."""
    sums = torch.zeros(6, dtype=torch.float64, device=towards.device)
    for _, _, d, h, w in pairs:
        # moments about 1, near the mean of cosine distances
        d, h = (d - 1).mul_(w), (h - 1).mul_(w)
        sums += torch.stack((w.sum(), d.sum(), h.sum(), (d * d).sum(), (h * h).sum(), (d * h).sum()))
    total, sum_d, sum_h, dd, hh, dh = sums
    mean_d, mean_h = 1 + sum_d / total, 1 + sum_h / total
    dd, hh, dh = dd - sum_d * sum_d / total, hh - sum_h * sum_h / total, dh - sum_d * sum_h / total
    r: torch.Tensor = dh / (dd * hh).sqrt()
    on_target, on_distance = -beta / (dd * hh).sqrt(), beta * r / dd
    for rows, columns, d, h, w in pairs:
        slope = d.sub_(mean_d).mul_(on_distance).add_(h.sub_(mean_h).mul_(on_target)).mul_(w).to(pairs.near.dtype)
        # d_ij = 1 - u_i . u_j
        towards[rows] -= slope @ pairs.near[columns]
        towards[columns] -= slope.mT @ pairs.near[rows]
    return r


def _triplets(
    unit: torch.Tensor, triplets: torch.Tensor, towards: torch.Tensor, *, alpha: float, temperature: float
) -> torch.Tensor:
    """Compute the mean cross-entropy, and add the gradient of alpha times it for the unit vectors to ``towards``."""
    loss = torch.zeros((), dtype=torch.float64, device=unit.device)
    for some in torch.split(triplets.long(), TRIPLETS_AT_A_TIME):
        i, j, k = (unit[some[:, place]] for place in range(3))
        shares = (torch.stack(((i * j).sum(-1), (i * k).sum(-1), (j * k).sum(-1)), -1) - 1) / temperature
        log_shares = shares.log_softmax(-1)
        loss -= log_shares[:, 0].sum()
        slope = log_shares.exp()
        slope[:, 0] -= 1
        ij, ik, jk = (slope * (alpha / (temperature * len(triplets)))).unsqueeze(1).unbind(-1)
        towards.index_add_(0, some[:, 0], ij * j + ik * k)
        towards.index_add_(0, some[:, 1], ij * i + jk * k)
        towards.index_add_(0, some[:, 2], ik * i + jk * j)
    return loss / max(len(triplets), 1)
