"""The public op ``triplet_loss``: its arguments, their checks, and the choice of a backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bgs_kernels import dispatch
from bgs_kernels.checks import check_choice, check_number, check_sets, check_weights, per_set, readable
from bgs_kernels.pairwise.reference import METRICS
from bgs_kernels.triplet.index import TripletIndex, check_items, place_of
from bgs_kernels.triplet.reference import FORMS

REDUCTIONS = ("mean", "sum", "none")
"""What becomes of the terms of several sets; "none" keeps one per set."""

SHARES_TOLERANCE = 1e-2
"""How far from 1 the shares of a soft choice may sum: what rounding three shares to bfloat16 can do."""


def triplet_loss(
    embeddings: torch.Tensor,
    triplets: torch.Tensor | TripletIndex,
    *,
    form: str = "softmax",
    metric: str = "cosine",
    temperature: float = 1.0,
    margin: float = 0.2,
    weights: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> torch.Tensor:
    """Compute the loss of odd-one-out judgments under the distances between embeddings.

    The formulas stand in ``bgs_kernels.triplet.reference.triplet_terms``. Indices are checked on the CPU only.

    Args:
        embeddings: (N, D) or, for several sets of items, (B, N, D); float16, bfloat16, float32 or float64.
        triplets: (T, 3) or (B, T, 3) integer rows (i, j, k) of a set's embeddings; k is the odd one. Or a
            ``TripletIndex`` of them, which does once what would otherwise be done in every call.
        form: "softmax" (three-way cross-entropy) or "margin" (hinge on d_ij - d_ik, as published).
        metric: "cosine", "correlation", "euclidean", "sqeuclidean" or "dot".
        temperature: what distances are divided by in the softmax form, in units of distance.
        margin: of the margin form, in units of distance.
        weights: (T,) or (B, T) non-negative weights of the triplets in their mean; 0 pads sets of fewer triplets.
        targets: (T, 3) or (B, T, 3) observed shares of the pairs (ij, ik, jk) in the choices, instead of all for ij;
            for the softmax form.
        reduction: over the sets: "mean", "sum" or "none"; within a set triplets are always averaged.
        backend: "auto", "triton", "native" or "reference".

    Returns:
        A scalar, or (B,) for several sets under "none"; float64 for float64 and float32 otherwise. A set without
        triplets, or whose weights sum to 0, has loss 0.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype, shape, device, index, weight or setting is not one of those, or a ``TripletIndex`` is of
            another number of rows.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_triplet_settings("form", form, temperature=temperature, margin=margin, metric=metric)
    sets = check_sets("embeddings", embeddings)
    judged = check_triplets(embeddings, triplets, weights=weights, targets=targets, form=form)
    losses: torch.Tensor = dispatch.run(
        "triplet_loss",
        backend,
        {
            "embeddings": sets,
            "triplets": judged.triplets,
            "triplet_places": judged.places,
            "triplet_starts": judged.starts,
            "weights": judged.weights,
            "targets": judged.targets,
        },
        form=form,
        metric=metric,
        temperature=temperature,
        margin=margin,
    )
    return reduce_sets(losses, reduction, batched=embeddings.dim() == 3)


@dataclass(frozen=True)
class Judged:
    """Checked triplets of every set: triplets (B, T, 3), weights (B, T), targets (B, T, 3) and, of a ``TripletIndex``,
    places (B, 3T) and starts (B, N + 1)."""

    triplets: torch.Tensor
    places: torch.Tensor | None
    starts: torch.Tensor | None
    weights: torch.Tensor | None
    targets: torch.Tensor | None


def check_triplet_settings(form_name: str, form: str, *, temperature: float, margin: float, metric: str) -> None:
    """Require a triplet form with its settings.

    Args:
        form_name: what the op calls the form.
        form: "softmax" or "margin".
        temperature: above 0.
        margin: at least 0.
        metric: a distance.

    Raises:
        ValueError: one of them is not.
    """
    check_choice(form_name, form, FORMS)
    check_choice("metric", metric, METRICS)
    check_number("temperature", temperature, positive=True)
    check_number("margin", margin)


def check_triplets(
    embeddings: torch.Tensor,
    triplets: torch.Tensor | TripletIndex,
    *,
    weights: torch.Tensor | None,
    targets: torch.Tensor | None,
    form: str,
    lengths: torch.Tensor | None = None,
    prefix: str = "",
) -> Judged:
    """Require triplets of rows of the embeddings, with their weights and soft choices.

    Args:
        embeddings: (N, D) or (B, N, D), checked.
        triplets: (T, 3) or (B, T, 3) integer, or an index of such.
        weights: (T,) or (B, T).
        targets: (T, 3) or (B, T, 3).
        form: "softmax" or "margin".
        lengths: (B,) number of rows of each set, checked.
        prefix: what the op puts before the names of weights and targets.

    Returns:
        The same for every set.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype, shape, device or, on the CPU, a value is not as described. A triplet of weight 0 is
            padding: it only has to stay within the N rows.
    """
    index = None
    if isinstance(triplets, TripletIndex):
        index, triplets = triplets, triplets.triplets
        if index.rows != embeddings.shape[-2]:
            raise ValueError(f"triplets: expected an index of {embeddings.shape[-2]} rows, got one of {index.rows}")
    triplets = per_set("triplets", triplets, ("T", 3), kind="an integer", embeddings=embeddings)
    count = triplets.shape[1]
    if weights is not None:
        of_sets = per_set(f"{prefix}weights", weights, (count,), kind="a real", embeddings=embeddings)
        if readable(weights):
            check_weights(f"{prefix}weights", weights)
        weights = of_sets
    if targets is not None:
        if form == "margin":
            raise ValueError(f"{prefix}targets: the margin form has no soft choices; use the softmax form")
        of_sets = per_set(f"{prefix}targets", targets, (count, 3), kind="a floating-point", embeddings=embeddings)
        if readable(targets):
            check_weights(f"{prefix}targets", targets)
            _check_shares(f"{prefix}targets", embeddings, of_sets, weights)
        targets = of_sets
    if readable(triplets) and (index is None or not index.sound or lengths is not None):
        _check_rows(embeddings, triplets, weights, lengths)
    if index is None:
        return Judged(triplets, None, None, weights, targets)
    # a set for all is one row of places, and expands like its triplets did
    places, starts = (each.expand(len(triplets), -1) for each in (index.places, index.starts))
    return Judged(triplets, places, starts, weights, targets)


def reduce_sets(terms: torch.Tensor, reduction: str, *, batched: bool) -> torch.Tensor:
    """Reduce terms over sets: (B,) to a scalar, except for several sets under "none"."""
    if not batched:
        return terms.reshape(())
    if reduction == "none":
        return terms
    return terms.mean() if reduction == "mean" else terms.sum()


def _check_rows(
    embeddings: torch.Tensor, triplets: torch.Tensor, weights: torch.Tensor | None, lengths: torch.Tensor | None
) -> None:
    """Require the rows of every triplet to exist and those of one that counts to differ and not to be padding."""
    rows, batched = embeddings.shape[-2], embeddings.dim() == 3
    limits: torch.Tensor | int = rows
    if lengths is not None:
        limits = lengths[:, None].expand(triplets.shape[:2])
        if weights is not None:
            limits = torch.where(weights == 0, rows, limits)
    check_items(triplets, limits, batched=batched, counted=weights is None or weights != 0)


def _check_shares(name: str, embeddings: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> None:
    """Require the shares of every triplet that counts to sum to 1."""
    sums = targets.double().sum(-1)
    wrong = (sums - 1).abs() > SHARES_TOLERANCE
    if weights is not None:
        wrong = wrong & (weights != 0)
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        total, where = float(sums[tuple(place)]), place_of(place, batched=embeddings.dim() == 3)
        raise ValueError(f"{name}: expected three shares that sum to 1, got a sum of {total:g} {where}")


dispatch.register("triplet_loss", "triton", "bgs_kernels.triplet.fused")
dispatch.register("triplet_loss", "native", "bgs_kernels.triplet.native")
dispatch.register("triplet_loss", "reference", "bgs_kernels.triplet.reference")
