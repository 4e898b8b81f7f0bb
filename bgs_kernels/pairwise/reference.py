"""The definition of the distances between rows, in plain PyTorch: every other way of computing them is tested against
this one in float64. What dtype an op computes in, and what counts as rounding error there, is decided here too.
"""

from __future__ import annotations

import torch

METRICS = ("cosine", "correlation", "euclidean", "sqeuclidean", "dot")

BOUNDED_METRICS = frozenset({"cosine", "correlation"})
"""Metrics whose distances come from unit vectors, so that their rounding error is relative to 1."""

ROUNDING = {torch.float32: 2.0**-18, torch.float64: 2.0**-40}
"""Relative size of what counts as rounding error, by compute dtype: a difference no larger than this, relative to the
terms that cancelled in it, carries no information and is taken as zero.

The bound is that of a sum of products. For up to 4,096 products of the same sign (the worst case, where every rounding
goes the same way) two orders of summation in MKL differed by up to 28 epsilon in float32, which is 2**-18.2, and 105
epsilon in float64, 2**-45.3; float64 has room to spare, and other libraries may need it.
"""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Give the dtype that an op computes and answers in: float64 for float64, float32 for float32 and for halves."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def pairwise_distance(x: torch.Tensor, y: torch.Tensor | None = None, *, metric: str = "cosine") -> torch.Tensor:
    r"""Compute the distance of every row of x to every row of y.

    With :math:`\hat x = x/|x|` and :math:`\bar x` the mean over the entries of x:

    * cosine: :math:`1 - \hat x \cdot \hat y`, computed as :math:`|\hat x - \hat y|^2/2`, which keeps its precision
      among nearly parallel rows; a zero vector is at distance 1 from everything;
    * correlation: the cosine distance of :math:`x - \bar x` and :math:`y - \bar y`;
    * sqeuclidean: :math:`|x - y|^2`;
    * euclidean: its root;
    * dot: :math:`-x \cdot y`.

    Rows that differ by no more than rounding (``ROUNDING``) are at distance 0 under every metric but dot. A row that
    holds NaN or an infinity is at distance NaN from every row. Where a distance has no derivative (at a zero vector
    under cosine, a constant row under correlation, equal rows under euclidean) its gradient is zero.

    Args:
        x: (..., N, D), any floating dtype.
        y: (..., M, D); x itself by default.
        metric: one of ``METRICS``.

    Returns:
        (..., N, M) in the compute dtype.
    """
    x = _finite_or_nan(x.to(compute_dtype(x.dtype)))
    y = x if y is None else _finite_or_nan(y.to(x.dtype))
    if metric == "dot":
        return -(x @ y.mT)
    if metric in BOUNDED_METRICS:
        unit_x, zero_x = _unit(x, centred=metric == "correlation")
        unit_y, zero_y = (unit_x, zero_x) if y is x else _unit(y, centred=metric == "correlation")
        return _squared_euclidean(unit_x, unit_y, apart_x=zero_x, apart_y=zero_y) / 2
    squared = _squared_euclidean(x, y)
    return squared if metric == "sqeuclidean" else _root(squared)


def _finite_or_nan(x: torch.Tensor) -> torch.Tensor:
    """Make the rows that hold an infinity NaN altogether, so that no arithmetic can turn them into a number again."""
    poison = torch.where(x.detach().isfinite().all(-1, keepdim=True), 0.0, float("nan"))
    return x + poison.to(x.dtype)


def _unit(x: torch.Tensor, *, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale the rows (..., N, D) to length one, after subtracting each row's mean if asked.

    Returns:
        the rows, zero for those without a direction; and (..., N) ones for those rows, zeros for the others.
    """
    size = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(size == 0, 1.0, size)  # every row's largest entry is 1: no square overflows or vanishes
    floor = 0.0
    if centred:
        x = x - x.mean(-1, keepdim=True)
        floor = ROUNDING[x.dtype]  # what is left of a constant row is the rounding of its mean
    zero = x.detach().abs().amax(-1, keepdim=True) <= floor
    length = torch.where(zero, 1.0, x).norm(dim=-1, keepdim=True)
    return torch.where(zero, 0.0, x) / length, zero.squeeze(-1).to(x.dtype)


def _squared_euclidean(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    apart_x: torch.Tensor | float = 0.0,
    apart_y: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Compute |x - y|^2 + apart_x + apart_y for all pairs as |x|^2 + |y|^2 - 2 x.y, with 0 for mere rounding.

    Distances do not depend on the origin, but what cancels does: it is moved to the mean of x, which keeps the
    precision of rows that lie close together far from it.
    """
    origin = x.detach().nan_to_num(nan=0.0).mean(-2, keepdim=True)  # rows of NaN leave the others alone
    x, y = x - origin, y - origin
    sizes = (x.square().sum(-1) + apart_x).unsqueeze(-1) + (y.square().sum(-1) + apart_y).unsqueeze(-2)
    squared = sizes - 2 * (x @ y.mT)
    # strictly less: what overflowed is not less than itself
    return squared.masked_fill(squared.detach() < ROUNDING[x.dtype] * sizes.detach(), 0.0)


def _root(squared: torch.Tensor) -> torch.Tensor:
    zero = squared.detach() == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
