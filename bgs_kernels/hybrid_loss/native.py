"""The hybrid loss by csrc: the operators that ``torch.library`` knows, and the implementation that dispatch calls.
``triplet_loss`` and ``rsa_correlation`` are the same operators with one term.

A call computes the gradient together with the loss, while distances are in cache; the backward pass only scales it. On
a CUDA device sets of up to 1,024 rows take one launch, as ``native_cuda`` says.
"""

from __future__ import annotations

import torch

from bgs_kernels import native
from bgs_kernels.dispatch import Request
from bgs_kernels.hybrid_loss import native_cuda
from bgs_kernels.hybrid_loss.reference import HybridTerms
from bgs_kernels.tracing import is_eager, is_transformed, refuse_second_derivative

SERVED = (torch.float16, torch.bfloat16, torch.float32)

ENTRIES_PER_TRIPLET = 512
"""Up to how many entries of the N x N distance matrix per triplet it costs less to make the tiles of that matrix than
to gather three rows a triplet, where no target needs them anyway."""


SMALL_ROWS = 1024
"""Sets of up to so many rows keep their matrix of distances for the length of a call: 4 MB, which stay in cache."""

KEPT_BYTES = 32 << 20
"""What larger sets keep of their distances from the forward to the backward half of a call: all up to 3,800 rows. The
rest is computed twice."""

PLACES_END = 2**31
"""3 T places of triplets stay below this."""


TENSORS = 9
"""The arguments of ``compute`` that come before the settings."""


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
    if embeddings.is_cuda:
        return native_cuda.compute(
            embeddings,
            triplets,
            target,
            target_embeddings,
            mask,
            weights,
            triplet_weights,
            triplet_targets,
            lengths,
            alpha,
            beta,
            triplet,
            temperature,
            margin,
            metric,
            target_metric,
            rsa,
            with_gradient,
        )
    sets, rows, columns = embeddings.shape
    # the default device may be another
    losses = torch.empty(sets, dtype=torch.float32, device="cpu")
    terms = torch.empty((3, sets), dtype=torch.float32, device="cpu")
    gradient = torch.empty(embeddings.shape if with_gradient else (0,), dtype=torch.float32, device="cpu")
    assert native.module is not None
    native.module.hybrid_loss(
        (sets, rows, columns, triplets.shape[1], 0 if target_embeddings is None else target_embeddings.shape[2]),
        native.argument(embeddings),
        native.argument(triplets),
        native.argument(target),
        native.argument(target_embeddings),
        native.argument(mask),
        native.argument(weights),
        native.argument(triplet_weights),
        native.argument(triplet_targets),
        native.argument(lengths),
        alpha,
        beta,
        triplet == "margin",
        temperature,
        margin,
        native.METRICS[metric],
        native.METRICS[target_metric],
        rsa == "pearson",
        native.threads(),
        SMALL_ROWS,
        KEPT_BYTES,
        losses.data_ptr(),
        terms.data_ptr(),
        gradient.data_ptr(),
    )
    return losses, terms, gradient


native_hybrid_loss = torch.library.custom_op("bgs_kernels::native_hybrid_loss", compute, mutates_args=())


@native_hybrid_loss.register_fake
def _(embeddings, *others):  # type: ignore[no-untyped-def]
    sets, with_gradient = len(embeddings), others[-1]
    losses = embeddings.new_empty(sets, dtype=torch.float32)
    terms = embeddings.new_empty((3, sets), dtype=torch.float32)
    return losses, terms, losses.new_empty(embeddings.shape if with_gradient else (0,))


def scale(upstream: torch.Tensor, gradient: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Multiply the gradients of the losses (B, N, D) by that by the losses (B,), in the dtype of the embeddings."""
    return (gradient * upstream[:, None, None]).to(embeddings.dtype)


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
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        losses, terms, ctx.gradient = compute(*inputs)
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:TENSORS])
        ctx.settings = inputs[TENSORS:]
        ctx.dtype = inputs[0].dtype
        return losses, terms

    @staticmethod
    def backward(ctx, upstream, *others):  # type: ignore[no-untyped-def]
        if upstream is None or not ctx.needs_input_grad[0]:
            return (None,) * (TENSORS + len(ctx.settings))
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            _, _, gradient = compute(*ctx.saved_tensors, *ctx.settings)
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted: the operator that refuses one is on record
            scaled = native_scaled_gradient(upstream, gradient, ctx.saved_tensors[0])
        else:
            scaled = gradient.mul_(upstream[:, None, None]).to(ctx.dtype)
        return (scaled, *(None,) * (TENSORS - 1 + len(ctx.settings)))


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
    inputs = (
        embeddings,
        triplets,
        target,
        target_embeddings,
        mask,
        weights,
        triplet_weights,
        triplet_targets,
        lengths,
        float(alpha),
        float(beta),
        triplet,
        float(temperature),
        float(margin),
        metric,
        target_metric,
        rsa,
        with_gradient,
    )
    if not is_eager(embeddings):
        loss, terms, _ = native_hybrid_loss(*inputs)
    elif with_gradient:
        loss, terms = NativeHybridLossFunction.apply(*inputs)  # type: ignore[no-untyped-call]
    else:
        loss, terms, _ = compute(*inputs)
    triplet_term, correlation, accuracy = terms.unbind()
    return HybridTerms(loss, triplet_term, correlation, accuracy)
