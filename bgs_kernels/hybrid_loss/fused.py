"""The hybrid loss by the Triton kernels: the two operators that ``torch.library`` knows (forward and backward), and the
implementation that dispatch calls. ``triplet_loss`` and ``rsa_correlation`` are the same operators with one term.
"""

from __future__ import annotations

import torch

from bgs_kernels.dispatch import Request
from bgs_kernels.hybrid_loss.launch import (
    Inputs,
    Settings,
    launch_backward,
    launch_forward,
    state_size,
    takes_pair_sums,
)
from bgs_kernels.hybrid_loss.reference import HybridTerms
from bgs_kernels.pairwise import fused as rows
from bgs_kernels.rsa.reference import PRECOMPUTED, RANK_METHODS
from bgs_kernels.tracing import is_eager, refuse_second_derivative

unavailable = rows.unavailable
passes_over = rows.passes_over


def why_not(request: Request) -> str | None:
    """Say why the kernels cannot serve a call, or None."""
    triplets = request.tensors.get("triplets")
    if triplets is not None and 3 * triplets.shape[1] >= 2**31:
        return "3 T places of triplets do not fit int32"
    if request.options.get("metric") == PRECOMPUTED:
        return "the kernels make their distances themselves"
    if request.options.get("method") in RANK_METHODS:
        return "the kernels do not rank"
    return rows.why_not(request)


def compute(
    embeddings: torch.Tensor,
    triplets: torch.Tensor,
    target: torch.Tensor | None,
    target_embeddings: torch.Tensor | None,
    mask: torch.Tensor | None,
    weights: torch.Tensor | None,
    triplet_weights: torch.Tensor | None,
    triplet_targets: torch.Tensor | None,
    triplet_places: torch.Tensor | None,
    triplet_starts: torch.Tensor | None,
    lengths: torch.Tensor | None,
    alpha: float,
    beta: float,
    triplet: str,
    temperature: float,
    margin: float,
    metric: str,
    target_metric: str,
    rsa: str,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the losses (B,), the terms (3, B) triplet, r and accuracy, and two buffers for the backward.

    The arguments are those of ``bgs_kernels.hybrid_loss.reference.hybrid_loss``; ``with_gradient`` says whether a
    backward will come.
    """
    given = Inputs(
        embeddings, triplets, target, target_embeddings, mask, weights, triplet_weights, triplet_targets, lengths
    )
    settings = Settings(alpha, beta, triplet, temperature, margin, metric, target_metric, rsa)
    pair_sums = takes_pair_sums(embeddings.shape[1], triplets.shape[1])
    losses, terms, buffer, by_distance, *_ = launch_forward(
        given, settings, with_gradient=with_gradient, pair_sums=pair_sums and with_gradient
    )
    return losses, terms, buffer, by_distance


hybrid_loss_forward = torch.library.custom_op("bgs_kernels::hybrid_loss_forward", compute, mutates_args=())


@hybrid_loss_forward.register_fake
def _(embeddings, triplets, *others):  # type: ignore[no-untyped-def]
    sets, count_rows, columns = embeddings.shape
    count = triplets.shape[1]
    target_embeddings, with_gradient = others[1], others[-1]
    target_columns = 0 if target_embeddings is None else target_embeddings.shape[2]
    options = {"dtype": torch.float32}
    if with_gradient and takes_pair_sums(count_rows, count):
        by_distance = embeddings.new_empty((sets, count_rows, count_rows), dtype=torch.int64)
    else:
        by_distance = embeddings.new_empty((sets, count if with_gradient else 0, 3), **options)
    buffer = embeddings.new_empty(state_size(sets, count_rows, columns, target_columns), **options)
    return embeddings.new_empty(sets, **options), embeddings.new_empty((3, sets), **options), buffer, by_distance


def differentiate(
    upstream: torch.Tensor,
    buffer: torch.Tensor,
    by_distance: torch.Tensor,
    embeddings: torch.Tensor,
    triplets: torch.Tensor,
    target: torch.Tensor | None,
    target_embeddings: torch.Tensor | None,
    mask: torch.Tensor | None,
    weights: torch.Tensor | None,
    triplet_places: torch.Tensor | None,
    triplet_starts: torch.Tensor | None,
    lengths: torch.Tensor | None,
    alpha: float,
    beta: float,
    triplet: str,
    temperature: float,
    margin: float,
    metric: str,
    target_metric: str,
    rsa: str,
) -> torch.Tensor:
    """Compute the gradient (B, N, D) by the embeddings, given that by the losses (B,) and the forward's buffers."""
    given = Inputs(embeddings, triplets, target, target_embeddings, mask, weights, lengths=lengths)
    settings = Settings(alpha, beta, triplet, temperature, margin, metric, target_metric, rsa)
    return launch_backward(upstream, given, settings, buffer, by_distance, places=triplet_places, starts=triplet_starts)


hybrid_loss_backward = torch.library.custom_op("bgs_kernels::hybrid_loss_backward", differentiate, mutates_args=())


@hybrid_loss_backward.register_fake
def _(upstream, buffer, by_distance, embeddings, *others):  # type: ignore[no-untyped-def]
    return torch.empty(embeddings.shape, dtype=embeddings.dtype, device=embeddings.device)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, triplets, target, target_rows, mask, weights, _, _, places, starts, lengths, *settings, _ = inputs
    _, terms, buffer, by_distance = output
    ctx.mark_non_differentiable(terms, buffer, by_distance)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(buffer, by_distance, x, triplets, target, target_rows, mask, weights, places, starts, lengths)
    ctx.settings = settings


def _backward(ctx, upstream, *others):  # type: ignore[no-untyped-def]
    gradient = None
    if upstream is not None and ctx.needs_input_grad[0]:
        # where a gradient of the gradient is wanted, the operator that refuses one is on record
        run = hybrid_loss_backward if torch.is_grad_enabled() or not is_eager(upstream) else differentiate
        gradient = run(upstream, *ctx.saved_tensors, *ctx.settings)
    return (gradient, *(None,) * 19)


torch.library.register_autograd(hybrid_loss_forward, _backward, setup_context=_save)
torch.library.register_autograd(hybrid_loss_backward, refuse_second_derivative)


class HybridLossFunction(torch.autograd.Function):
    """The operator without the dispatcher, which costs more than the launches of a small loss."""

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        output = compute(*inputs)
        _save(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)


def hybrid_loss(
    embeddings: torch.Tensor,
    triplets: torch.Tensor,
    target: torch.Tensor | None = None,
    *,
    triplet_places: torch.Tensor | None = None,
    triplet_starts: torch.Tensor | None = None,
    target_embeddings: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    triplet_weights: torch.Tensor | None = None,
    triplet_targets: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    alpha: float = 0.7,
    beta: float = 0.3,
    triplet: str = "softmax",
    temperature: float = 1.0,
    margin: float = 0.2,
    metric: str = "cosine",
    target_metric: str = "cosine",
    rsa: str = "pearson",
) -> HybridTerms:
    """Compute the hybrid loss of every set, as ``bgs_kernels.hybrid_loss.reference.hybrid_loss`` does."""
    run = HybridLossFunction.apply if is_eager(embeddings) else hybrid_loss_forward
    loss, terms, _, _ = run(  # type: ignore[no-untyped-call]
        embeddings,
        triplets,
        target,
        target_embeddings,
        mask,
        weights,
        triplet_weights,
        triplet_targets,
        triplet_places,
        triplet_starts,
        lengths,
        float(alpha),
        float(beta),
        triplet,
        float(temperature),
        float(margin),
        metric,
        target_metric,
        rsa,
        embeddings.requires_grad and torch.is_grad_enabled(),
    )
    triplet_term, correlation, accuracy = terms.unbind()
    return HybridTerms(loss, triplet_term, correlation, accuracy)
