"""The hybrid loss of sharded rows by the Triton kernels, with the work divided over the ranks of a group. Beside
``sharded`` because it imports Triton, which only those who run it need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from bgs_kernels.hybrid_loss.launch import (
    Inputs,
    Settings,
    Shard,
    launch_backward,
    launch_finish,
    launch_forward,
    takes_pair_sums,
)
from bgs_kernels.hybrid_loss.reference import HybridTerms

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed import ProcessGroup


def divided_hybrid_loss(
    own: torch.Tensor,
    first: int,
    group: ProcessGroup,
    tensors: Mapping[str, Any],
    *,
    alpha: float,
    beta: float,
    triplet: str,
    temperature: float,
    margin: float,
    metric: str,
    target_metric: str,
    rsa: str,
) -> HybridTerms:
    """Compute the hybrid loss of all rows, with the gradient of this rank's own.

    Every rank computes a stretch of the tiles of pairs, and all triplets, which are few beside them; the ranks exchange
    the moments of the tiles, 10 float32 numbers each, and combine all of them in the same order, that of one process.
    In the backward pass every rank computes the gradient of its own rows by all pairs, and nothing is exchanged.

    Args:
        own: (N_r, D) this rank's own rows, which get the gradient.
        first: the number of the first of them.
        group: the ranks that hold the others.
        tensors: the tensor arguments of ``bgs_kernels.hybrid_loss.fused.hybrid_loss`` for the one set of all rows.
        alpha, beta, triplet, temperature, margin, metric, target_metric, rsa: as there.

    Returns:
        Every term, (1,), the same on every rank.
    """
    given = Inputs(
        tensors["embeddings"].detach(),
        tensors["triplets"],
        tensors["target"],
        tensors["target_embeddings"],
        tensors["mask"],
        tensors["weights"],
        tensors["triplet_weights"],
        tensors["triplet_targets"],
    )
    settings = Settings(
        float(alpha), float(beta), triplet, float(temperature), float(margin), metric, target_metric, rsa
    )
    shard = Shard(dist.get_rank(group), dist.get_world_size(group), first, first + len(own))
    index = tensors["triplet_places"], tensors["triplet_starts"]
    with_gradient = own.requires_grad and torch.is_grad_enabled()
    loss, terms = _Divided.apply(own, given, settings, shard, group, index, with_gradient)  # type: ignore[no-untyped-call]
    triplet_term, correlation, accuracy = terms.unbind()
    return HybridTerms(loss, triplet_term, correlation, accuracy)


def gather_moments(moments: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Gather the moments (B, 10, n) of the tiles of every rank as (B, 10, R n), rank after rank, contiguous."""
    if not moments.numel():  # without targets there are no tiles, on any rank
        return moments
    gathered = moments.new_empty(dist.get_world_size(group), *moments.shape)
    dist.all_gather_into_tensor(gathered.view(-1), moments.view(-1), group=group)
    # where a rank has a single tile, flattened is a view still
    return gathered.permute(1, 2, 0, 3).flatten(2).contiguous()


class _Divided(torch.autograd.Function):
    """Compute the loss (1,) and the terms (3, 1) of all rows; backward, the gradient of the own ones."""

    @staticmethod
    def forward(
        ctx: Any,
        own: torch.Tensor,
        given: Inputs,
        settings: Settings,
        shard: Shard,
        group: ProcessGroup,
        index: tuple[torch.Tensor | None, torch.Tensor | None],
        with_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pair_sums = with_gradient and takes_pair_sums(given.x.shape[1], given.triplets.shape[1])
        _, _, buffer, by_distance, moments, triplet_sums = launch_forward(
            given, settings, with_gradient=with_gradient, pair_sums=pair_sums, shard=shard
        )
        moments = gather_moments(moments, group)
        loss, terms = launch_finish(moments, triplet_sums, buffer, given, settings, pair_sums=pair_sums)
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)
        if with_gradient:
            kept = replace(given, triplet_weights=None, triplet_targets=None)
            others = (getattr(kept, each.name) for each in fields(kept))
            ctx.save_for_backward(own, buffer, by_distance, *index, *others)
            ctx.settings, ctx.shard = settings, shard
        return loss, terms

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, ...]:
        gradient = None
        if upstream is not None:
            own, *kept = ctx.saved_tensors
            gradient = _OwnGradient.apply(own, upstream, kept, ctx.settings, ctx.shard)  # type: ignore[no-untyped-call]
        return (gradient, *(None,) * 6)


class _OwnGradient(torch.autograd.Function):
    """Compute the gradient of the own rows. It depends on rows that the graph does not show and could not follow, so a
    second derivative is refused rather than left out."""

    @staticmethod
    def forward(
        ctx: Any,
        own: torch.Tensor,
        upstream: torch.Tensor,
        kept: list[torch.Tensor],
        settings: Settings,
        shard: Shard,
    ) -> torch.Tensor:
        buffer, by_distance, places, starts, *tensors = kept
        return launch_backward(
            upstream,
            Inputs(*tensors),
            settings,
            buffer,
            by_distance,
            places=places,
            starts=starts,
            shard=shard,
        )[0]

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> None:
        raise RuntimeError("the loss of rows that are sharded over a group has no second derivative")
