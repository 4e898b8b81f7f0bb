"""The public op ``rsa_correlation``: its arguments, their checks, and the choice of a backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bgs_kernels import dispatch
from bgs_kernels.checks import check_choice, check_sets, check_weights, per_set, readable
from bgs_kernels.pairwise.reference import METRICS
from bgs_kernels.rsa.reference import METHODS, PRECOMPUTED, RANK_METHODS


def rsa_correlation(
    embeddings: torch.Tensor,
    target: torch.Tensor | None = None,
    *,
    target_embeddings: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    metric: str = "cosine",
    target_metric: str | None = None,
    method: str = "pearson",
    backend: str = "auto",
) -> torch.Tensor:
    """Correlate the distances between embeddings with those of a target geometry, over the observed pairs i < j.

    The formulas, and what holds for degenerate geometries, stand in ``bgs_kernels.rsa.reference.correlate``; which
    pairs are observed, in ``observed_pairs`` beside it.

    Args:
        embeddings: (N, D) or, for several sets of items, (B, N, D); float16, bfloat16, float32 or float64. With the
            metric "precomputed", distances: (N, N) or (B, N, N).
        target: (N, N) or (B, N, N) dissimilarities, NaN where unobserved. Only the upper triangle is read.
        target_embeddings: (N, E) or (B, N, E), instead of a target: its distances are the target.
        mask: (N, N) or (B, N, N) bool, True where observed.
        weights: (N, N) or (B, N, N) non-negative; 0 is unobserved.
        metric: "cosine", "correlation", "euclidean", "sqeuclidean", "dot" or "precomputed".
        target_metric: the distance between target embeddings; by default the metric.
        method: "pearson", "cosine" (uncentred) or one of "spearman", "tau-a" and "tau-b" (Kendall's), which have no
            gradient and for which weights only select pairs.
        backend: "auto", "triton", "native" or "reference".

    Returns:
        A scalar, or (B,) for several sets; float64 for float64 and float32 otherwise. It is 0, with zero gradient,
        where fewer than two pairs are observed or one side does not vary.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype, shape, device, weight or setting is not one of those, there is not exactly one target, or a
            gradient of a method that has none would be needed.
    """
    check_choice("metric", metric, (*METRICS, PRECOMPUTED))
    check_choice("method", method, METHODS)
    sets = check_sets("embeddings", embeddings)
    if metric == PRECOMPUTED and sets.shape[1] != sets.shape[2]:
        raise ValueError(f"embeddings: expected (N, N) or (B, N, N) distances, got {tuple(embeddings.shape)}")
    if method in RANK_METHODS and embeddings.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"method: {method!r} has no gradient; pass embeddings.detach(), or call it under torch.no_grad()"
        )
    if target_metric is None:
        if metric == PRECOMPUTED and target_embeddings is not None:
            raise ValueError("target_metric: must be given for target_embeddings when the metric is 'precomputed'")
        target_metric = metric if metric != PRECOMPUTED else METRICS[0]
    if target is None and target_embeddings is None:
        raise ValueError("target: one of target and target_embeddings must be given")
    pairs = check_pairs(
        embeddings,
        target,
        target_embeddings=target_embeddings,
        mask=mask,
        weights=weights,
        target_metric=target_metric,
    )
    correlations: torch.Tensor = dispatch.run(
        "rsa_correlation",
        backend,
        {
            "embeddings": sets,
            "target": pairs.target,
            "target_embeddings": pairs.target_embeddings,
            "mask": pairs.mask,
            "weights": pairs.weights,
        },
        metric=metric,
        target_metric=target_metric,
        method=method,
    )
    return correlations if embeddings.dim() == 3 else correlations.reshape(())


@dataclass(frozen=True)
class Pairs:
    """Checked target of every set: target, mask and weights (B, N, N), target_embeddings (B, N, E)."""

    target: torch.Tensor | None
    target_embeddings: torch.Tensor | None
    mask: torch.Tensor | None
    weights: torch.Tensor | None


def check_pairs(
    embeddings: torch.Tensor,
    target: torch.Tensor | None,
    *,
    target_embeddings: torch.Tensor | None,
    mask: torch.Tensor | None,
    weights: torch.Tensor | None,
    target_metric: str,
) -> Pairs:
    """Require at most one target for the embeddings, with its mask and weights.

    Args:
        embeddings: (N, D) or (B, N, D), checked.
        target: (N, N) or (B, N, N).
        target_embeddings: (N, E) or (B, N, E).
        mask: (N, N) or (B, N, N) bool.
        weights: (N, N) or (B, N, N) non-negative above the diagonal.
        target_metric: a distance.

    Returns:
        The same for every set.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype, shape, device or, on the CPU, a weight is not as described, or both targets are given.
    """
    check_choice("target_metric", target_metric, METRICS)
    if target is not None and target_embeddings is not None:
        raise ValueError("target: only one of target and target_embeddings may be given")
    rows = embeddings.shape[-2]
    if target is not None:
        target = per_set("target", target, (rows, rows), kind="a real", embeddings=embeddings)
    if target_embeddings is not None:
        target_embeddings = per_set(
            "target_embeddings", target_embeddings, (rows, "E"), kind="a floating-point", embeddings=embeddings
        )
        if target_embeddings.shape[-1] == 0:
            raise ValueError(f"target_embeddings: expected at least one column, got {tuple(target_embeddings.shape)}")
    if mask is not None:
        mask = per_set("mask", mask, (rows, rows), kind="the bool", embeddings=embeddings)
    if weights is not None:
        of_sets = per_set("weights", weights, (rows, rows), kind="a real", embeddings=embeddings)
        if readable(weights):
            check_weights("weights", weights.triu(1))
        weights = of_sets
    return Pairs(target, target_embeddings, mask, weights)


dispatch.register("rsa_correlation", "triton", "bgs_kernels.rsa.fused")
dispatch.register("rsa_correlation", "native", "bgs_kernels.rsa.native")
dispatch.register("rsa_correlation", "reference", "bgs_kernels.rsa.reference")
