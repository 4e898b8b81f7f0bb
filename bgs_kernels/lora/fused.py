"""Projections with adapters by the Triton kernels: the two operators that ``torch.library`` knows (forward and
backward), and the implementations that dispatch calls. ``lora_linear`` and ``lora_qkv`` are the same operators with one
projection and with three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from bgs_kernels.autocast import without_autocast
from bgs_kernels.dispatch import Request
from bgs_kernels.lora.dropout import threshold
from bgs_kernels.lora.launch import SLOTS, launch_backward, launch_forward
from bgs_kernels.lora.projection import Projection
from bgs_kernels.pairwise import fused as rows
from bgs_kernels.tracing import is_eager, is_transformed, refuse_second_derivative

unavailable = rows.unavailable
passes_over = rows.passes_over

MOST_RANKS = 256


def why_not(request: Request) -> str | None:
    """Say why the kernels cannot serve a call, or None."""
    given = list(request.tensors.values())
    adapters = [request.tensors.get("lora_A")]
    projections = request.options.get("projections", ())
    assert isinstance(projections, tuple)
    for weight, bias, lora_A, lora_B, _ in projections:
        given += [tensor for tensor in (weight, bias, lora_A, lora_B) if tensor is not None]
        adapters.append(lora_A)
    if any([is_transformed(tensor) for tensor in given]):
        return "torch.func and forward-mode derivatives need backend='reference'"
    x = request.tensors["x"]
    if x.device.type != "cuda" and not (rows.INTERPRETED and x.device.type == "cpu"):
        return f"x on {x.device.type}, not on a CUDA device"
    if x.dtype not in rows.SERVED:
        return f"x of {str(x.dtype).removeprefix('torch.')}"
    for lora_A in adapters:
        if lora_A is not None and lora_A.shape[0] > MOST_RANKS:
            return f"an adapter of rank {lora_A.shape[0]}, above {MOST_RANKS}"
    dropout_p = request.options["dropout_p"]
    assert isinstance(dropout_p, float)
    if threshold(dropout_p) >= 2**32:
        return f"dropout_p of {dropout_p!r}, which keeps nothing"
    return None


def compute(
    x: torch.Tensor,
    seeds: torch.Tensor | None,
    weight_0: torch.Tensor,
    bias_0: torch.Tensor | None,
    lora_A_0: torch.Tensor | None,
    lora_B_0: torch.Tensor | None,
    weight_1: torch.Tensor | None,
    bias_1: torch.Tensor | None,
    lora_A_1: torch.Tensor | None,
    lora_B_1: torch.Tensor | None,
    weight_2: torch.Tensor | None,
    bias_2: torch.Tensor | None,
    lora_A_2: torch.Tensor | None,
    lora_B_2: torch.Tensor | None,
    scalings: list[float],
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute up to three projections of x (M, K), (M, O) each and empty where there is none, and the low-rank
    intermediate that the backward needs; see ``bgs_kernels.lora.launch.launch_forward``."""
    tensors = (weight_0, bias_0, lora_A_0, lora_B_0, weight_1, bias_1, lora_A_1, lora_B_1)
    projections = grouped((*tensors, weight_2, bias_2, lora_A_2, lora_B_2), scalings)
    results, low = launch_forward(x, projections, seeds, dropout_p)
    first, second, third = results + [x.new_empty(0) for _ in range(SLOTS - len(results))]
    return first, second, third, low


def grouped(tensors: Sequence[torch.Tensor | None], scalings: Iterable[float]) -> list[Projection]:
    """Give the projections whose weight, bias, A and B come one after the other."""
    projections = []
    for place, scaling in enumerate(scalings):
        weight, bias, lora_A, lora_B = tensors[4 * place : 4 * place + 4]
        assert weight is not None
        projections.append(Projection(weight, bias, lora_A, lora_B, scaling))
    return projections


lora_forward = torch.library.custom_op("bgs_kernels::lora_forward", compute, mutates_args=())


@lora_forward.register_fake
def _(x, seeds, *others):  # type: ignore[no-untyped-def]
    *tensors, _, _ = others
    results = [x.new_empty(0 if weight is None else (x.shape[0], weight.shape[0])) for weight in tensors[::4]]
    adapters = [lora_A for lora_A in tensors[2::4] if lora_A is not None]
    return *results, adapters[0].new_empty(x.shape[0] * sum(lora_A.shape[0] for lora_A in adapters))


def differentiate(
    upstream_0: torch.Tensor | None,
    upstream_1: torch.Tensor | None,
    upstream_2: torch.Tensor | None,
    x: torch.Tensor,
    low: torch.Tensor,
    seeds: torch.Tensor | None,
    weight_0: torch.Tensor,
    lora_A_0: torch.Tensor | None,
    lora_B_0: torch.Tensor | None,
    weight_1: torch.Tensor | None,
    lora_A_1: torch.Tensor | None,
    lora_B_1: torch.Tensor | None,
    weight_2: torch.Tensor | None,
    lora_A_2: torch.Tensor | None,
    lora_B_2: torch.Tensor | None,
    scalings: list[float],
    dropout_p: float,
    with_x: bool,
    with_A: bool,
    with_B: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients by x and by the adapters of those projections whose result has one; see
    ``bgs_kernels.lora.launch.launch_backward``."""
    upstreams = (upstream_0, upstream_1, upstream_2)
    tensors = (
        weight_0,
        None,
        lora_A_0,
        lora_B_0,
        weight_1,
        None,
        lora_A_1,
        lora_B_1,
        weight_2,
        None,
        lora_A_2,
        lora_B_2,
    )
    projections = grouped(tensors, scalings)
    given = [upstream for upstream in upstreams if upstream is not None]
    places = [place for place, upstream in enumerate(upstreams) if upstream is not None]
    if len(places) < len(projections):  # what another loss left out
        sizes = [0 if each.lora_A is None else len(x) * len(each.lora_A) for each in projections]
        parts = torch.split(low, sizes)  # type: ignore[no-untyped-call]
        low = torch.cat([parts[place] for place in places])
    with without_autocast(x.device.type):
        return launch_backward(
            given,
            x,
            low,
            [projections[place] for place in places],
            places,
            seeds,
            dropout_p,
            with_x=with_x,
            with_A=with_A,
            with_B=with_B,
        )


lora_backward = torch.library.custom_op("bgs_kernels::lora_backward", differentiate, mutates_args=())


@lora_backward.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    *upstreams, x, low, _ = arguments[:6]
    weights_and_adapters = arguments[6:15]
    with_x, with_A, with_B = arguments[17:]
    total = 0
    for place, upstream in enumerate(upstreams):
        weight, lora_A, _ = weights_and_adapters[3 * place : 3 * place + 3]
        if upstream is not None and lora_A is not None:
            columns = (x.shape[1] if with_A else 0) + (weight.shape[0] if with_B else 0)
            total += lora_A.shape[0] * columns
    return x.new_empty((x.shape[0] if with_x else 0, x.shape[1])), low.new_empty(total)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, seeds, *tensors, scalings, dropout_p = inputs
    *results, low = output
    without = [result for result, weight in zip(results, tensors[::4], strict=True) if weight is None]
    ctx.mark_non_differentiable(low, *(result for result in without if result is not None))
    ctx.set_materialize_grads(False)
    kept = [tensor for place, tensor in enumerate(tensors) if place % 4 != 1]  # without biases
    ctx.save_for_backward(x, low, seeds, *kept)
    ctx.numbers = (scalings, dropout_p)


def _backward(ctx, *upstreams):  # type: ignore[no-untyped-def]
    upstreams = upstreams[:SLOTS]
    x, low, seeds, *tensors = ctx.saved_tensors
    with_x, _, *needs = ctx.needs_input_grad[:14]
    gradients = [None] * len(needs)
    learns = [upstream is not None for upstream in upstreams]
    with_A, with_B = (any(need for need, one in zip(needs[first::4], learns, strict=True) if one) for first in (2, 3))
    by_x = None
    if any(learns) and (with_x or with_A or with_B):
        some = next(upstream for upstream in upstreams if upstream is not None)
        # where a gradient of the gradient is wanted, the operator that refuses one is on record
        run = lora_backward if torch.is_grad_enabled() or not is_eager(some) else differentiate
        by_x, by_adapters = run(*upstreams, x, low, seeds, *tensors, *ctx.numbers, with_x, with_A, with_B)
        by_x = by_x if with_x else None
        adapted = [place for place in range(SLOTS) if learns[place] and tensors[3 * place + 1] is not None]
        wanted = [4 * place + 2 for place in adapted if with_A] + [4 * place + 3 for place in adapted if with_B]
        start = 0
        for place in wanted:
            shape = tensors[place - 1 - place // 4].shape
            if needs[place]:
                gradients[place] = by_adapters[start : start + shape.numel()].view(shape)
            start += shape.numel()
    for place, upstream in enumerate(upstreams):
        if learns[place] and needs[4 * place + 1]:
            gradients[4 * place + 1] = upstream.sum(0)
    return by_x, None, *gradients, None, None


torch.library.register_autograd(lora_forward, _backward, setup_context=_save)
torch.library.register_autograd(lora_backward, refuse_second_derivative)


class LoraFunction(torch.autograd.Function):
    """The operator without the dispatcher, which costs more than a thin kernel."""

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        x, seeds, *tensors, scalings, dropout_p = inputs
        results, low = launch_forward(x, grouped(tensors, scalings), seeds, dropout_p)
        output = (*results, *[None] * (SLOTS - len(results)), low)
        _save(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    lora_A: torch.Tensor | None = None,
    lora_B: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    *,
    scaling: float,
    dropout_p: float,
) -> torch.Tensor:
    """Compute a projection, as ``bgs_kernels.lora.reference.lora_linear`` does."""
    (projected,) = run(x, (Projection(weight, bias, lora_A, lora_B, scaling),), seed, dropout_p)
    return projected


def lora_qkv(
    x: torch.Tensor,
    seed: torch.Tensor | None = None,
    *,
    projections: tuple[Projection, ...],
    dropout_p: float,
) -> tuple[torch.Tensor, ...]:
    """Compute several projections of one input, as ``bgs_kernels.lora.reference.lora_qkv`` does."""
    return run(x, projections, seed, dropout_p)


def run(
    x: torch.Tensor, projections: tuple[Projection, ...], seed: torch.Tensor | None, dropout_p: float
) -> tuple[torch.Tensor, ...]:
    """Compute up to three projections of x (..., K)."""
    adapters = [each.lora_A for each in projections if each.lora_A is not None]
    if not adapters:
        return tuple(F.linear(x, each.weight, each.bias) for each in projections)
    if dropout_p == 0:
        seed = None
    elif seed is None:  # out here, where a checkpoint that restores torch's generator draws it again
        seed = torch.randint(-(2**63), 2**63 - 1, (len(projections),), device=x.device)
    else:
        seed = seed.reshape(-1)
    tensors: list[torch.Tensor | None] = []
    for weight, bias, lora_A, lora_B, _ in projections:
        if lora_A is not None and lora_B is not None and any(other.dtype != lora_A.dtype for other in adapters):
            lora_A, lora_B = lora_A.float(), lora_B.float()
        tensors += [weight, bias, lora_A, lora_B]
    tensors += [None] * (4 * SLOTS - len(tensors))
    eager = all(is_eager(tensor) for tensor in (x, *tensors) if tensor is not None)
    flat = x.reshape(-1, x.shape[-1])
    scalings = [each.scaling for each in projections]
    forward = LoraFunction.apply if eager else lora_forward
    results = forward(flat, seed, *tensors, scalings, dropout_p)  # type: ignore[no-untyped-call]
    return tuple(
        result.view(*x.shape[:-1], each.weight.shape[0])
        for result, each in zip(results[: len(projections)], projections, strict=True)
    )
