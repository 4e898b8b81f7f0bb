"""The hybrid loss by csrc: the operators that ``torch.library`` knows, and the implementation that dispatch calls.
``triplet_loss`` and ``rsa_correlation`` are the same operators with one term.

A call computes the gradient together with the loss, while distances are in cache; the backward pass only scales it. On
a CUDA device sets of up to 1,024 rows take one launch, as ``native_cuda`` says.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from bgs_kernels import dispatch, native
from bgs_kernels.dispatch import Request
from bgs_kernels.hybrid_loss import native_cuda
from bgs_kernels.hybrid_loss.reference import HybridTerms
from bgs_kernels.tracing import EAGER, is_eager, is_transformed, refuse_second_derivative
from bgs_kernels.triplet.index import TripletIndex

if TYPE_CHECKING:
    from bgs_kernels._native import LossSettings

SERVED = (torch.float16, torch.bfloat16, torch.float32)
INDICES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

ENTRIES_PER_TRIPLET = 512
"""Up to how many entries of the N x N distance matrix per triplet it costs less to make the tiles of that matrix than
to gather three rows a triplet, where no target needs them anyway."""


SMALL_ROWS = 1024
"""Sets of up to so many rows keep their matrix of distances for the length of a call: 4 MB, which stay in cache."""

KEPT_BYTES = 2 << 20
"""What larger sets keep of their distances from the forward to the backward half of a call; the rest is computed twice.
With 2 MB a call of (4,096, 768) needs less than a tenth of the memory that plain PyTorch does; 32 MB would hold most of
its distances, nearly double that memory and save a fifth of the time."""

PLACES_END = 2**31
"""3 T places of triplets stay below this."""


Settings = tuple[float, float, str, float, float, str, str, str]
"""alpha, beta, triplet, temperature, margin, metric, target_metric, rsa."""


def unavailable() -> str | None:
    """Say why csrc cannot run on this machine, or None."""
    return native.MISSING


def why_not(request: Request) -> str | None:
    """Say why csrc cannot serve a call, or None."""
    if request.tensors["embeddings"].is_cuda:
        return native_cuda.why_not(request)
    for name in ("embeddings", "target_embeddings"):
        rows = request.tensors.get(name)
        if rows is None:
            continue
        if is_transformed(rows):
            return "torch.func and forward-mode derivatives need backend='reference'"
        if rows.device.type != "cpu":
            return f"{name} on {rows.device.type}, not on the CPU"
    triplets = request.tensors.get("triplets")
    if triplets is not None and 3 * (triplets.shape[1] + 1024) >= PLACES_END:
        return "3 T places of triplets do not fit int32"
    if request.tensors["embeddings"].dtype not in SERVED:
        return f"embeddings of {str(request.tensors['embeddings'].dtype).removeprefix('torch.')}"
    for name, tensor in request.tensors.items():
        if tensor.dtype not in native.DTYPES:
            return f"{name} of {str(tensor.dtype).removeprefix('torch.')}"
    return None


def passes_over(request: Request) -> str | None:
    """Say why "auto" takes another backend, or None."""
    if request.tensors["embeddings"].is_cuda:
        return None
    triplets, rows = request.tensors.get("triplets"), request.tensors["embeddings"].shape[1]
    with_target = "target" in request.tensors or "target_embeddings" in request.tensors
    if triplets is not None and not with_target and rows * rows > ENTRIES_PER_TRIPLET * triplets.shape[1]:
        return "few triplets of many rows are gathered faster"
    return None


def compute(
    embeddings: torch.Tensor,
    triplets: torch.Tensor,
    target: torch.Tensor | None,
    target_embeddings: torch.Tensor | None,
    mask: torch.Tensor | None,
    weights: torch.Tensor | None,
    triplet_weights: torch.Tensor | None,
    triplet_targets: torch.Tensor | None,
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the losses (B,), the terms (3, B) triplet, r and accuracy, and the losses' gradient (B, N, D), which has
    no elements unless asked for; all float32.

    The arguments are those of ``bgs_kernels.hybrid_loss.reference.hybrid_loss``.
    """
    tensors = (
        embeddings,
        triplets,
        target,
        target_embeddings,
        mask,
        weights,
        triplet_weights,
        triplet_targets,
        lengths,
    )
    settings = (alpha, beta, triplet, temperature, margin, metric, target_metric, rsa)
    losses, terms, gradient = compute_call(tensors, settings, with_gradient=with_gradient)
    assert terms is not None
    return losses, terms, gradient


def compute_call(
    tensors: tuple[torch.Tensor | None, ...],
    settings: Settings,
    *,
    with_gradient: bool,
    with_terms: bool = True,
    distinct: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Compute losses, terms and gradient.

    Args:
        tensors: the first arguments of ``compute``; on the CPU also those of one set, without a dimension of sets.
        settings: the others.
        with_gradient: whether the gradient is wanted; it has no elements otherwise.
        with_terms: whether terms are wanted.
        distinct: whether a triplet that names an item twice is an error.

    Returns:
        losses (B,), terms (3, B) or None, and the gradient (B, N, D); for one set (), (3,) and (N, D).

    Raises:
        IndexError: an index of a triplet is out of range, or a triplet names an item twice where that is an error.
    """
    embeddings, triplets, _, target_embeddings = tensors[:4]
    assert embeddings is not None and triplets is not None and native.module is not None
    if embeddings.is_cuda:
        return native_cuda.compute(*tensors, *settings, with_gradient)  # type: ignore[arg-type, call-arg]
    shape = embeddings.shape
    of_sets = len(shape) == 3
    losses = embeddings.new_empty(shape[:-2], dtype=torch.float32)
    terms = embeddings.new_empty((3, *shape[:-2]), dtype=torch.float32) if with_terms else None
    if with_gradient:
        gradient = torch.empty_like(embeddings, dtype=torch.float32, memory_format=torch.contiguous_format)
    else:
        gradient = embeddings.new_empty(0, dtype=torch.float32)
    columns = 0 if target_embeddings is None else target_embeddings.shape[-1]
    arguments: list[Any] = [
        (shape[0] if of_sets else 1, shape[-2], shape[-1], triplets.shape[-2], columns),
        of_sets,
        *map(native.argument, tensors),
        _native_settings(*settings),
        distinct,
        torch.get_num_threads(),
        SMALL_ROWS,
        KEPT_BYTES,
        losses.data_ptr(),
        0 if terms is None else terms.data_ptr(),
        gradient.data_ptr(),
    ]
    native.module.hybrid_loss(*arguments)
    return losses, terms, gradient


@functools.lru_cache(maxsize=256)
def _native_settings(
    alpha: float,
    beta: float,
    triplet: str,
    temperature: float,
    margin: float,
    metric: str,
    target_metric: str,
    rsa: str,
) -> LossSettings:
    assert native.module is not None
    return native.module.LossSettings(
        alpha,
        beta,
        triplet == "margin",
        temperature,
        margin,
        native.METRICS[metric],
        native.METRICS[target_metric],
        rsa == "pearson",
    )


native_hybrid_loss = torch.library.custom_op("bgs_kernels::native_hybrid_loss", compute, mutates_args=())


@native_hybrid_loss.register_fake
def _(embeddings, *others):  # type: ignore[no-untyped-def]
    sets, with_gradient = len(embeddings), others[-1]
    losses = embeddings.new_empty(sets, dtype=torch.float32)
    terms = embeddings.new_empty((3, sets), dtype=torch.float32)
    return losses, terms, losses.new_empty(embeddings.shape if with_gradient else (0,))


def scale(upstream: torch.Tensor, gradient: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Multiply the gradients of the losses (B, N, D) by that by the losses (B,), in the embeddings' dtype; for one
    set (N, D) by ()."""
    return (gradient * _of_rows(upstream)).to(embeddings.dtype)


def _of_rows(upstream: torch.Tensor) -> torch.Tensor:
    return upstream[:, None, None] if upstream.dim() else upstream


native_scaled_gradient = torch.library.custom_op("bgs_kernels::native_scaled_gradient", scale, mutates_args=())


@native_scaled_gradient.register_fake
def _(upstream, gradient, embeddings):  # type: ignore[no-untyped-def]
    return torch.empty(embeddings.shape, dtype=embeddings.dtype, device=embeddings.device)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, terms, gradient = output
    ctx.mark_non_differentiable(terms, gradient)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(gradient, inputs[0])


def _backward(ctx, upstream, *others):  # type: ignore[no-untyped-def]
    gradient = None
    if upstream is not None and ctx.needs_input_grad[0]:
        gradient = native_scaled_gradient(upstream, *ctx.saved_tensors)
    return (gradient, *(None,) * 17)


torch.library.register_autograd(native_hybrid_loss, _backward, setup_context=_save)
torch.library.register_autograd(native_scaled_gradient, refuse_second_derivative)


class NativeHybridLossFunction(torch.autograd.Function):
    """The operator without the dispatcher, which costs more than a small loss, and without a copy of the gradient: the
    first backward pass scales and hands out the one that the forward computed, another computes it again."""

    @staticmethod
    def forward(ctx, embeddings, constants, settings, with_terms, distinct):  # type: ignore[no-untyped-def]
        tensors = (embeddings, *constants)
        losses, terms, ctx.gradient = compute_call(
            tensors, settings, with_gradient=True, with_terms=with_terms, distinct=distinct
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.settings, ctx.dtype = settings, embeddings.dtype
        if terms is None:
            return losses
        ctx.mark_non_differentiable(terms)
        return losses, terms

    @staticmethod
    def backward(ctx, upstream, *others):  # type: ignore[no-untyped-def]
        if upstream is None or not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            _, _, gradient = compute_call(ctx.saved_tensors, ctx.settings, with_gradient=True, with_terms=False)
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted: the operator that refuses one is on record
            gradient = native_scaled_gradient(upstream, gradient, ctx.saved_tensors[0])
        else:
            if upstream.is_cuda or upstream.dim() or upstream.item() != 1:
                gradient.mul_(_of_rows(upstream))
            gradient = gradient.to(ctx.dtype)
        return gradient, None, None, None, None


def plain_call(
    embeddings: torch.Tensor,
    triplets: torch.Tensor | TripletIndex | None,
    target: torch.Tensor | None,
    mask: torch.Tensor | None,
    backend: str,
    settings: Settings,
    *,
    with_terms: bool,
) -> HybridTerms | torch.Tensor | None:
    """Compute the loss of the usual call, one set on the CPU with a dense target, in a few microseconds beside csrc's.

    Args:
        embeddings, triplets, target, mask, backend: those of ``bgs_kernels.hybrid_loss``, not checked yet.
        settings: checked.
        with_terms: whether the terms are wanted.

    Returns:
        The loss, or the terms; None if it is not such a call, if another backend is to serve it or if something is
        wrong with it, which the checks of the general way then say.
    """
    distinct = True
    if isinstance(triplets, TripletIndex):
        distinct = not triplets.sound
        triplets = triplets.triplets if triplets.rows == len(embeddings) else None
    if (
        type(embeddings) not in EAGER
        or type(triplets) is not torch.Tensor
        or type(target) is not torch.Tensor
        or not (embeddings.is_cpu and triplets.is_cpu and target.is_cpu)
        or embeddings.dtype not in SERVED
        or triplets.dtype not in INDICES
        or target.dtype not in native.DTYPES
        or target.requires_grad
        or is_transformed(embeddings)
    ):
        return None
    shape, judged = embeddings.shape, triplets.shape
    if len(shape) != 2 or len(judged) != 2 or judged[1] != 3 or shape[1] == 0 or 3 * (judged[0] + 1024) >= PLACES_END:
        return None
    square = (shape[0], shape[0])
    if target.shape != square:
        return None
    if mask is not None and not (
        type(mask) is torch.Tensor and mask.dtype is torch.bool and mask.is_cpu and mask.shape == square
    ):
        return None
    if not dispatch.prefers("hybrid_loss", backend, "native", "cpu", shape[0]):
        return None
    constants = (triplets, target, None, mask, None, None, None, None)
    terms = None
    try:
        if embeddings.requires_grad and torch.is_grad_enabled():
            apply: Any = NativeHybridLossFunction.apply
            loss = apply(embeddings, constants, settings, with_terms, distinct)
            if with_terms:
                loss, terms = loss
        else:
            loss, terms, _ = compute_call(
                (embeddings, *constants), settings, with_gradient=False, with_terms=with_terms, distinct=distinct
            )
    except IndexError:
        return None
    return loss if terms is None else HybridTerms(loss, *terms.unbind())


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
    with_gradient = embeddings.requires_grad and torch.is_grad_enabled()
    tensors = (
        embeddings,
        triplets,
        target,
        target_embeddings,
        mask,
        weights,
        triplet_weights,
        triplet_targets,
        lengths,
    )
    settings = (float(alpha), float(beta), triplet, float(temperature), float(margin), metric, target_metric, rsa)
    if not is_eager(embeddings):
        loss, terms, _ = native_hybrid_loss(*tensors, *settings, with_gradient)
    elif with_gradient:
        loss, terms = NativeHybridLossFunction.apply(embeddings, tensors[1:], settings, True, False)  # type: ignore[no-untyped-call]
    else:
        loss, terms, _ = compute(*tensors, *settings, with_gradient)
    triplet_term, correlation, accuracy = terms.unbind()
    return HybridTerms(loss, triplet_term, correlation, accuracy)
