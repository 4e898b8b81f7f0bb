"""The public op ``pairwise_distance``: its arguments, their checks, and the choice of a backend."""

from __future__ import annotations

import torch

from bgs_kernels import dispatch
from bgs_kernels.checks import check_choice, check_embeddings
from bgs_kernels.pairwise.reference import METRICS


def pairwise_distance(
    x: torch.Tensor, y: torch.Tensor | None = None, *, metric: str = "cosine", backend: str = "auto"
) -> torch.Tensor:
    """Compute the distance of every row of x to every row of y.

    The formulas, and what holds for rows that are zero, equal or not numbers, stand in
    ``bgs_kernels.pairwise.reference.pairwise_distance``.

    Args:
        x: (..., N, D) float16, bfloat16, float32 or float64.
        y: (..., M, D) with the same leading shape, dtype and device; x itself by default.
        metric: "cosine", "correlation", "euclidean", "sqeuclidean" or "dot".
        backend: "auto", "triton", "native" or "reference".

    Returns:
        (..., N, M) float64 for float64 and float32 otherwise, differentiable, twice as well.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype, shape, device, metric or backend is not one of those.
    """
    check_choice("metric", metric, METRICS)
    check_embeddings("x", x)
    if y is not None:
        check_embeddings("y", y)
        if y.dtype != x.dtype or y.device != x.device:
            raise ValueError(f"y: expected {x.dtype} on {x.device}, those of x, got {y.dtype} on {y.device}")
        if y.shape[:-2] != x.shape[:-2] or y.shape[-1] != x.shape[-1]:
            expected = ", ".join([*map(str, x.shape[:-2]), "M", str(x.shape[-1])])
            raise ValueError(f"y: expected shape ({expected}) for x of {tuple(x.shape)}, got {tuple(y.shape)}")
    distances: torch.Tensor = dispatch.run("pairwise_distance", backend, {"x": x, "y": y}, metric=metric)
    return distances


dispatch.register("pairwise_distance", "triton", "bgs_kernels.pairwise.fused")
dispatch.register("pairwise_distance", "native", "bgs_kernels.pairwise.native")
dispatch.register("pairwise_distance", "reference", "bgs_kernels.pairwise.reference")
