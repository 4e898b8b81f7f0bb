"""The public op ``hybrid_loss`` and its module ``HybridLoss``: the arguments, their checks, the choice of a backend,
and what becomes of the terms of several sets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, overload

import torch

from bgs_kernels import dispatch
from bgs_kernels.checks import check_choice, check_number, check_sets, per_set, readable
from bgs_kernels.hybrid_loss import native
from bgs_kernels.hybrid_loss.reference import HybridTerms
from bgs_kernels.hybrid_loss.sharded import run_sharded
from bgs_kernels.pairwise.reference import METRICS
from bgs_kernels.rsa.api import check_pairs
from bgs_kernels.rsa.reference import RSA_METHODS
from bgs_kernels.triplet.api import REDUCTIONS, check_triplet_settings, check_triplets, reduce_sets
from bgs_kernels.triplet.index import TripletIndex

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed import ProcessGroup


@overload
def hybrid_loss(
    embeddings: torch.Tensor,
    triplets: torch.Tensor | TripletIndex | None,
    target: torch.Tensor | None = None,
    *,
    target_embeddings: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    triplet_weights: torch.Tensor | None = None,
    triplet_targets: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    group: ProcessGroup | None = None,
    alpha: float = 0.7,
    beta: float = 0.3,
    triplet: str = "softmax",
    temperature: float = 1.0,
    margin: float = 0.2,
    metric: str = "cosine",
    target_metric: str | None = None,
    rsa: str = "pearson",
    reduction: str = "mean",
    return_terms: Literal[False] = False,
    backend: str = "auto",
) -> torch.Tensor: ...


@overload
def hybrid_loss(
    embeddings: torch.Tensor,
    triplets: torch.Tensor | TripletIndex | None,
    target: torch.Tensor | None = None,
    *,
    target_embeddings: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    triplet_weights: torch.Tensor | None = None,
    triplet_targets: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    group: ProcessGroup | None = None,
    alpha: float = 0.7,
    beta: float = 0.3,
    triplet: str = "softmax",
    temperature: float = 1.0,
    margin: float = 0.2,
    metric: str = "cosine",
    target_metric: str | None = None,
    rsa: str = "pearson",
    reduction: str = "mean",
    return_terms: Literal[True],
    backend: str = "auto",
) -> HybridTerms: ...


def hybrid_loss(
    embeddings: torch.Tensor,
    triplets: torch.Tensor | TripletIndex | None,
    target: torch.Tensor | None = None,
    *,
    target_embeddings: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    triplet_weights: torch.Tensor | None = None,
    triplet_targets: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    group: ProcessGroup | None = None,
    alpha: float = 0.7,
    beta: float = 0.3,
    triplet: str = "softmax",
    temperature: float = 1.0,
    margin: float = 0.2,
    metric: str = "cosine",
    target_metric: str | None = None,
    rsa: str = "pearson",
    reduction: str = "mean",
    return_terms: bool = False,
    backend: str = "auto",
) -> torch.Tensor | HybridTerms:
    """Compute the loss of behavioural geometric supervision: alpha * triplet term - beta * RSA correlation.

    The triplet term fits the local geometry to odd-one-out judgments, the RSA term the global one to a matrix of human
    dissimilarities, as in arXiv 2510.01502. The formulas, and what holds for degenerate input, stand in
    ``bgs_kernels.triplet.reference.triplet_terms`` and ``bgs_kernels.rsa.reference.correlate``; ``triplet="margin"``,
    ``metric="cosine"``, ``rsa="pearson"`` is the published objective. Distances are computed in float32 for halves and
    float32, in float64 for float64. NaN or an infinity in an embedding that a term of the loss uses makes the loss NaN:
    the triplet term uses the rows that triplets name, the RSA term all rows but padding, and weights of 0 do not hide
    them. Values of integer and weight tensors are checked on the CPU only.

    Args:
        embeddings: (N, D) or, for several sets of items, (B, N, D); float16, bfloat16, float32 or float64.
        triplets: (T, 3) or (B, T, 3) integer rows (i, j, k) of a set's embeddings; k is the odd one. None for none. Or
            a ``TripletIndex`` of them, which does once what would otherwise be done in every call.
        target: (N, N) or (B, N, N) human dissimilarities, NaN where unobserved. Only the upper triangle is read. One
            of target and target_embeddings must be given unless beta is 0.
        target_embeddings: (N, E) or (B, N, E): the distances between these are the target.
        mask: (N, N) or (B, N, N) bool, True where the target was observed.
        weights: (N, N) or (B, N, N) non-negative weights of the pairs; 0 is unobserved.
        triplet_weights: (T,) or (B, T) non-negative weights of the triplets in their mean; 0 pads sets of fewer
            triplets, and such rows only have to stay within the N rows.
        triplet_targets: (T, 3) or (B, T, 3) observed shares of the pairs (ij, ik, jk) in the choices, instead of all
            for ij; for the softmax form.
        lengths: (B,) integer number of items of each set; the rows after them are padding, may hold anything and get
            no gradient.
        group: the processes over which the rows of one set of embeddings are sharded. Each passes its own rows
            (N_r, D), as many as it has or none; in the order of the ranks they make the (N, D) of the loss. All else is
            that of the whole set and the same on every rank, triplets with the numbers of the whole set's rows. Every
            rank gets the loss of the whole set and in the backward pass, which exchanges nothing, the gradient of that
            one loss with respect to its own rows. All ranks must run the same backend: under "triton" each computes its
            share of the correlation and the gradient of its own rows, under another all of both.
            ``DistributedDataParallel`` averages the gradients of parameters over ranks, where they would have to be
            added up: multiply the loss by the number of ranks there.
        alpha: factor of the triplet term, at least 0.
        beta: factor of the RSA term, at least 0; at 0 the term takes no part in the loss, not even as NaN.
        triplet: "softmax" (three-way cross-entropy) or "margin" (hinge on d_ij - d_ik).
        temperature: what distances are divided by in the softmax form, in units of distance.
        margin: of the margin form, in units of distance.
        metric: "cosine", "correlation", "euclidean", "sqeuclidean" or "dot".
        target_metric: the distance between target embeddings; by default the metric.
        rsa: "pearson" or "cosine" (uncentred).
        reduction: over the sets: "mean", "sum" or "none". Within a set every term is an average already.
        return_terms: whether to return the terms beside the loss.
        backend: "auto", "triton", "native" or "reference".

    Returns:
        The loss, a scalar, or (B,) for several sets under "none"; float64 for float64 and float32 otherwise. With
        ``return_terms`` a ``HybridTerms`` of four such tensors, of which the loss alone carries a gradient.

    Raises:
        TypeError: an argument is no tensor, or the group is none that this process belongs to.
        ValueError: a dtype, shape, device, index, weight or setting is not one of those, the target is missing, a
            ``TripletIndex`` is of another number of rows, or the ranks of a group pass embeddings that do not fit
            together or run different backends (raised on all of them).
    """
    target_metric = target_metric or metric
    held = (alpha, beta, triplet, temperature, margin, metric, target_metric, rsa)
    compiling = torch.compiler.is_compiling()
    if compiling:
        check_settings(*held, reduction)
    else:
        try:
            _check_settings_once(*held, reduction)
        except TypeError:  # one has no hash
            check_settings(*held, reduction)
    if (
        target_embeddings is None
        and weights is None
        and triplet_weights is None
        and triplet_targets is None
        and lengths is None
        and group is None
        and not compiling
    ):
        plain = native.plain_call(embeddings, triplets, target, mask, backend, held, with_terms=return_terms)
        if plain is not None:
            return plain

    def check(embeddings: torch.Tensor) -> dict[str, torch.Tensor | None]:
        return check_batch(
            embeddings,
            triplets,
            target,
            target_embeddings=target_embeddings,
            mask=mask,
            weights=weights,
            triplet_weights=triplet_weights,
            triplet_targets=triplet_targets,
            lengths=lengths,
            beta=beta,
            triplet=triplet,
            target_metric=target_metric,
            correlated=bool(beta) or return_terms,
        )

    settings = dict(
        alpha=alpha,
        beta=beta,
        triplet=triplet,
        temperature=temperature,
        margin=margin,
        metric=metric,
        target_metric=target_metric,
        rsa=rsa,
    )
    terms: HybridTerms
    if group is None:
        terms = dispatch.run("hybrid_loss", backend, check(embeddings), **settings)
    else:
        terms = run_sharded(embeddings, group, backend, check, **settings)
    batched = embeddings.dim() == 3
    if not return_terms:
        return reduce_sets(terms.loss, reduction, batched=batched)
    return HybridTerms(*(reduce_sets(term, reduction, batched=batched) for term in terms))


SETTINGS = (
    "alpha",
    "beta",
    "triplet",
    "temperature",
    "margin",
    "metric",
    "target_metric",
    "rsa",
    "reduction",
    "return_terms",
    "backend",
)
"""The arguments of ``hybrid_loss`` that do not come with a batch."""


class HybridLoss(torch.nn.Module):
    """``hybrid_loss`` with its settings held: a criterion that is called with embeddings and judgments.

    Every setting is a plain attribute of the same name and may be changed between calls, as a schedule of beta does.

    Args:
        alpha, beta, triplet, temperature, margin, metric, target_metric, rsa, reduction, return_terms, backend: as in
            ``hybrid_loss``.

    Raises:
        ValueError: a setting is not one that ``hybrid_loss`` takes.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.7,
        beta: float = 0.3,
        triplet: str = "softmax",
        temperature: float = 1.0,
        margin: float = 0.2,
        metric: str = "cosine",
        target_metric: str | None = None,
        rsa: str = "pearson",
        reduction: str = "mean",
        return_terms: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_settings(
            alpha=alpha,
            beta=beta,
            triplet=triplet,
            temperature=temperature,
            margin=margin,
            metric=metric,
            target_metric=target_metric or metric,
            rsa=rsa,
            reduction=reduction,
        )
        dispatch.check_name("backend", backend)
        self.alpha = alpha
        self.beta = beta
        self.triplet = triplet
        self.temperature = temperature
        self.margin = margin
        self.metric = metric
        self.target_metric = target_metric
        self.rsa = rsa
        self.reduction = reduction
        self.return_terms = return_terms
        self.backend = backend

    def forward(
        self,
        embeddings: torch.Tensor,
        triplets: torch.Tensor | TripletIndex | None,
        target: torch.Tensor | None = None,
        *,
        target_embeddings: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        triplet_weights: torch.Tensor | None = None,
        triplet_targets: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        group: ProcessGroup | None = None,
    ) -> torch.Tensor | HybridTerms:
        """Compute the loss; the arguments, the result and the errors are those of ``hybrid_loss``."""
        loss: Callable[..., torch.Tensor | HybridTerms] = hybrid_loss
        return loss(
            embeddings,
            triplets,
            target,
            target_embeddings=target_embeddings,
            mask=mask,
            weights=weights,
            triplet_weights=triplet_weights,
            triplet_targets=triplet_targets,
            lengths=lengths,
            group=group,
            **self._settings(),
        )

    def extra_repr(self) -> str:
        """Write the settings."""
        return ", ".join(f"{name}={value!r}" for name, value in self._settings().items())

    def _settings(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in SETTINGS}


def check_settings(
    alpha: float,
    beta: float,
    triplet: str,
    temperature: float,
    margin: float,
    metric: str,
    target_metric: str,
    rsa: str,
    reduction: str,
) -> None:
    """Require settings that ``hybrid_loss`` takes.

    Raises:
        ValueError: one is not.
    """
    check_number("alpha", alpha)
    check_number("beta", beta)
    check_triplet_settings("triplet", triplet, temperature=temperature, margin=margin, metric=metric)
    check_choice("target_metric", target_metric, METRICS)
    check_choice("rsa", rsa, RSA_METHODS)
    check_choice("reduction", reduction, REDUCTIONS)


_check_settings_once = functools.lru_cache(maxsize=256)(check_settings)
"""The same for settings that may have been checked before: those of a training step are those of the last."""


def check_batch(
    embeddings: torch.Tensor,
    triplets: torch.Tensor | TripletIndex | None,
    target: torch.Tensor | None,
    *,
    target_embeddings: torch.Tensor | None,
    mask: torch.Tensor | None,
    weights: torch.Tensor | None,
    triplet_weights: torch.Tensor | None,
    triplet_targets: torch.Tensor | None,
    lengths: torch.Tensor | None,
    beta: float,
    triplet: str,
    target_metric: str,
    correlated: bool,
) -> dict[str, torch.Tensor | None]:
    """Require what comes with a batch to be what ``hybrid_loss`` takes.

    Args:
        embeddings: those of all rows.
        triplets, target, target_embeddings, mask, weights, triplet_weights, triplet_targets, lengths, beta, triplet,
            target_metric: as in ``hybrid_loss``.
        correlated: whether anyone will look at the correlation; the target is left out otherwise.

    Returns:
        The tensor arguments of the implementations, those of every set (B, ...).

    Raises:
        TypeError: an argument is no tensor.
        ValueError: one is not as described there.
    """
    sets = check_sets("embeddings", embeddings)
    if lengths is not None:
        lengths = _check_lengths(embeddings, lengths)
    if triplets is None:
        if triplet_weights is not None or triplet_targets is not None:
            raise ValueError("triplets: must be given with triplet_weights or triplet_targets")
        triplets = torch.empty((0, 3), dtype=torch.int64, device=embeddings.device)
    judged = check_triplets(
        embeddings,
        triplets,
        weights=triplet_weights,
        targets=triplet_targets,
        form=triplet,
        lengths=lengths,
        prefix="triplet_",
    )
    pairs = check_pairs(
        embeddings,
        target,
        target_embeddings=target_embeddings,
        mask=mask,
        weights=weights,
        target_metric=target_metric,
    )
    if beta and target is None and target_embeddings is None:
        raise ValueError("target: one of target and target_embeddings must be given unless beta is 0")
    return {
        "embeddings": sets,
        "triplets": judged.triplets,
        "triplet_places": judged.places,
        "triplet_starts": judged.starts,
        "target": pairs.target if correlated else None,
        "target_embeddings": pairs.target_embeddings if correlated else None,
        "mask": pairs.mask,
        "weights": pairs.weights,
        "triplet_weights": judged.weights,
        "triplet_targets": judged.targets,
        "lengths": lengths,
    }


def _check_lengths(embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    if embeddings.dim() != 3:
        raise ValueError(f"lengths: need embeddings (B, N, D), got {tuple(embeddings.shape)}")
    if isinstance(lengths, torch.Tensor) and lengths.shape != embeddings.shape[:1]:
        raise ValueError(f"lengths: expected shape ({len(embeddings)},), got {tuple(lengths.shape)}")
    lengths = per_set("lengths", lengths, (), kind="an integer", embeddings=embeddings)
    rows = embeddings.shape[1]
    if readable(lengths):
        wrong = (lengths < 0) | (lengths > rows)
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise ValueError(f"lengths: expected 0 to {rows}, got {int(lengths[place])} (set {place})")
    return lengths


dispatch.register("hybrid_loss", "triton", "bgs_kernels.hybrid_loss.fused")
dispatch.register("hybrid_loss", "native", "bgs_kernels.hybrid_loss.native")
dispatch.register("hybrid_loss", "reference", "bgs_kernels.hybrid_loss.reference")
