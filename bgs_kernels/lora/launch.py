"""What the kernels of projections with adapters are given: slots, buffers and strides, and the order of their
launches."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bgs_kernels import tuning
from bgs_kernels.lora.dropout import threshold
from bgs_kernels.lora.kernels import (
    lora_add_kernel,
    lora_bwd_a_kernel,
    lora_bwd_b_kernel,
    lora_bwd_kernel,
    lora_fwd_kernel,
    lora_low_kernel,
    lora_low_shared_kernel,
    lora_sum_kernel,
)
from bgs_kernels.lora.plan import WIDEST, Plan, Problem, backward_plan, candidates, chunks, forward_plan, rank_block
from bgs_kernels.lora.projection import Projection
from bgs_kernels.pairwise.fused import FUSION, on_device_of, precision
from bgs_kernels.tuning import Tiles

GROUP = 8
"""Rows of tiles that programs that run together share."""

SUMMED = 512
"""Numbers of a partial result that a program adds."""


def thin_precision(x: torch.Tensor) -> str:
    """Give the precision of float32 products with A and B: an operand of half precision is exact in TensorFloat-32, so
    that three products of it are as good as IEEE float32."""
    asked = precision()
    return "tf32x3" if asked == "ieee" and x.dtype != torch.float32 else asked


class Slot(NamedTuple):
    """A projection as the kernels take it.

    Args:
        frozen: the projection.
        seed: the place of its seed.
        outputs: O.
        rank: r; 0 without an adapter.
        lora_A: (r, K), contiguous; some adapter's where it has none.
        lora_B: (O, r), likewise.
        upstream: (M, O) the gradient by its result; in the forward its weight.
    """

    frozen: Projection
    seed: int
    outputs: int
    rank: int
    lora_A: torch.Tensor
    lora_B: torch.Tensor
    upstream: torch.Tensor


def slots_of(
    projections: Sequence[Projection], seeds: Sequence[int], upstreams: Sequence[torch.Tensor] | None = None
) -> list[Slot]:
    """Lay out projections."""
    some_A, some_B = next(
        ((each.lora_A, each.lora_B) for each in projections if each.lora_A is not None), (projections[0].weight,) * 2
    )
    slots = []
    for place, each in enumerate(projections):
        lora_A, lora_B = (some_A, some_B) if each.lora_A is None else (each.lora_A, each.lora_B)
        assert lora_A is not None and lora_B is not None
        rank = 0 if each.lora_A is None else len(lora_A)
        upstream = each.weight if upstreams is None else upstreams[place]
        lora_A, lora_B = lora_A.contiguous(), lora_B.contiguous()
        slots.append(Slot(each, seeds[place], each.weight.shape[0], rank, lora_A, lora_B, upstream))
    return slots


def three(given: Iterable[Any], without: Any = None) -> tuple[Any, ...]:
    """Fill up to three values up to three: by what stands for none, or else by the first."""
    values = tuple(given)
    return (*values, *(values[0] if without is None else without,) * (3 - len(values)))


def alike(tensors: Sequence[torch.Tensor], dims: slice) -> tuple[torch.Tensor, ...]:
    """Give matrices that have the same strides along some dimensions: copies where they come in several layouts."""
    if any(each.stride()[dims] != tensors[0].stride()[dims] for each in tensors):
        return tuple(each.contiguous() for each in tensors)
    return tuple(tensors)


def upstreams_of(slots: Sequence[Slot]) -> tuple[tuple[torch.Tensor, ...], tuple[int, ...]]:
    """Give the pointers and the strides, those of rows and the one of columns, of the gradients by the results."""
    upstreams = three(alike([slot.upstream for slot in slots], slice(1, 2)))
    return upstreams, (*(each.stride(0) for each in upstreams), upstreams[0].stride(1))


def weights_of(slots: Sequence[Slot]) -> tuple[tuple[torch.Tensor, ...], tuple[int, ...]]:
    """Give the pointers and the strides of the frozen weights."""
    weights = three(alike([slot.frozen.weight for slot in slots], slice(0, 2)))
    return weights, weights[0].stride()


def described(x: torch.Tensor, slots: Sequence[Slot], *, dropout: bool) -> Problem:
    """Say what a plan depends on."""
    rows, columns = x.shape
    return Problem(
        rows,
        columns,
        sum(slot.outputs for slot in slots),
        max(slot.rank for slot in slots),
        sum(slot.rank > 0 for slot in slots),
        x.dtype,
        slots[0].lora_A.dtype,
        dropout,
        precision(),
        tuning.capability(x.device),
        tuning.processors(x.device),
    )


def tuning_key(direction: str, device: torch.device, problem: Problem) -> tuple[object, ...]:
    """Say what is searched for once."""
    sizes = tuning.size_class(problem.rows, problem.columns, problem.outputs, problem.rank)
    words = (problem.slots, problem.dtype, problem.adapter_dtype, problem.dropout, problem.precision)
    return (f"lora {direction}", tuning.name(device), *words, *sizes)


@dataclass(frozen=True)
class Dropout:
    """What dropout is in a call.

    Args:
        seeds: (n,) int64, one for each projection; where there is no dropout some tensor.
        probability: that of dropping an entry.
    """

    seeds: torch.Tensor
    probability: float

    @property
    def keep_scale(self) -> float:
        return 1 / (1 - self.probability)

    def words(self, columns: int) -> dict[str, Any]:
        """Give the words of a kernel that makes masks of rows of some width."""
        return {"THRESHOLD": threshold(self.probability), "QUADS": columns % 4 == 0}


def launch_forward(
    x: torch.Tensor,
    projections: Sequence[Projection],
    seeds: torch.Tensor | None,
    dropout_p: float,
    plan: Plan | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Compute projections of one input.

    Args:
        x: (M, K), any strides.
        projections: one to three, one of which at least has an adapter; all adapters are of one dtype.
        seeds: (n,) int64, one for each projection; None without dropout.
        dropout_p: the probability to drop an entry.
        plan: how; by default what ``forward_plan`` or a search chooses.

    Returns:
        (M, O) of x's dtype for each; and dropout(x) A^T of all that have an adapter, (M, r) one after the other, in one
        buffer of the adapters' dtype.
    """
    with on_device_of(x):
        rows = len(x)
        slots = slots_of(projections, range(len(projections)))
        problem = described(x, slots, dropout=dropout_p > 0)
        dropout = Dropout(x if seeds is None else seeds.contiguous(), dropout_p)
        low = torch.empty(rows * sum(slot.rank for slot in slots), dtype=problem.adapter_dtype, device=x.device)
        if not rows:
            return [torch.empty((0, slot.outputs), dtype=x.dtype, device=x.device) for slot in slots], low
        if plan is None:
            default = forward_plan(problem)
            search = functools.partial(launch_forward, x, projections, seeds, dropout_p)
            plan = tuning.autotuned(
                tuning_key("forward", x.device, problem),
                default,
                candidates(default, problem, is_forward=True),
                lambda candidate: search(plan=candidate),
            )
        if plan.way != "in-loop":
            launch_low(x, slots, dropout, low, plan.low)
        if plan.way != "library":
            return launch_products(x, slots, low, plan), low
        results = []
        for slot, part in zip(slots, parts_of(low, rows, slots), strict=True):
            result = torch.nn.functional.linear(x, slot.frozen.weight, slot.frozen.bias)
            if slot.rank and low.dtype == x.dtype:
                result.addmm_(part, slot.lora_B.t(), alpha=slot.frozen.scaling)
            elif slot.rank:
                launch_add(result, part, slot.lora_B.t(), slot.frozen.scaling, plan.outer)
            results.append(result)
        return results, low


def parts_of(low: torch.Tensor, rows: int, slots: Sequence[Slot]) -> list[torch.Tensor]:
    """Give the matrices (M, r) that a buffer holds one after the other."""
    ranks = [slot.rank for slot in slots]
    split = torch.split(low, [rows * rank for rank in ranks])  # type: ignore[no-untyped-call]
    return [part.view(rows, rank) for part, rank in zip(split, ranks, strict=True)]


def launch_low(x: torch.Tensor, slots: Sequence[Slot], dropout: Dropout, low: torch.Tensor, tiles: Tiles) -> None:
    """Store dropout(x) A^T of all slots."""
    slots = [slot for slot in slots if slot.rank]
    rank = max(slot.rank for slot in slots)
    lora_As = three(slot.lora_A for slot in slots)
    held = rank_block(rank, low.dtype)
    blocks = {"BM": tiles.rows, "BK": tiles.inner, "BR": held, "PARTS": tuning.blocks(rank, held)}
    n_programs = tuning.blocks(len(x), tiles.rows) * blocks["PARTS"]
    if len(slots) > 1 and not dropout.probability:
        lora_low_shared_kernel[(n_programs,)](
            x, *lora_As, low, *x.shape, *three(slot.rank for slot in slots), *x.stride(),
            SLOTS=len(slots), THIN=thin_precision(x), **blocks,
            num_warps=tiles.warps, num_stages=tiles.stages, **FUSION,
        )  # fmt: skip
        return
    lora_low_kernel[(n_programs * len(slots),)](
        x, x, x, *lora_As, low, dropout.seeds, len(x), *three([x.shape[1]]), *three(slot.rank for slot in slots),
        *three(slot.seed for slot in slots), *three([dropout.keep_scale]), *three([x.stride(0)]), x.stride(1),
        SLOTS=len(slots), IS_A=True, **dropout.words(x.shape[1]), THIN=thin_precision(x), **blocks,
        num_warps=tiles.warps, num_stages=tiles.stages, **FUSION,
    )  # fmt: skip


def launch_products(x: torch.Tensor, slots: Sequence[Slot], low: torch.Tensor, plan: Plan) -> list[torch.Tensor]:
    """Compute the projections, the low-rank product inside the frozen one."""
    tiles = plan.product
    rank = max(slot.rank for slot in slots)
    results = [torch.empty((len(x), slot.outputs), dtype=x.dtype, device=x.device) for slot in slots]
    weights, weight_strides = weights_of(slots)
    biases = [slot.frozen.weight if slot.frozen.bias is None else slot.frozen.bias.contiguous() for slot in slots]
    n_tiles = tuning.blocks(len(x), tiles.rows) * sum(tuning.blocks(slot.outputs, tiles.others) for slot in slots)
    if not n_tiles:
        return results
    lora_fwd_kernel[(n_tiles,)](
        x, *weights, *three(biases), *three(slot.lora_A for slot in slots), *three(slot.lora_B for slot in slots),
        low, *three(results),
        *x.shape, *three((slot.outputs for slot in slots), 0), *three((slot.rank for slot in slots), 0),
        *three(slot.frozen.scaling for slot in slots), *x.stride(), *weight_strides,
        SLOTS=len(slots), BIASED=sum((slot.frozen.bias is not None) << place for place, slot in enumerate(slots)),
        IN_LOOP=plan.way == "in-loop", PRECISION=precision(), THIN=thin_precision(x),
        BM=tiles.rows, BN=tiles.others, BK=tiles.inner, BR=rank_block(rank, low.dtype), GROUP=GROUP,
        num_warps=tiles.warps, num_stages=tiles.stages, **FUSION,
    )  # fmt: skip
    return results


def launch_add(
    out: torch.Tensor,
    low: torch.Tensor,
    up: torch.Tensor,
    factor: float,
    tiles: Tiles,
    seed: torch.Tensor | None = None,
    dropout: Dropout | None = None,
) -> None:
    """Add factor * low up, a product of (M, r) and (r, C), in place, where dropout keeps the entry if there is any."""
    rows, columns = out.shape
    if not columns:
        return
    words = {"THRESHOLD": 0, "QUADS": True} if dropout is None else dropout.words(columns)
    lora_add_kernel[(tuning.blocks(rows, tiles.rows), tuning.blocks(columns, tiles.others))](
        out, low, up, low if seed is None else seed, rows, columns, len(up), factor, *up.stride(),
        THIN=thin_precision(out), **words, BM=tiles.rows, BC=tiles.others, BR=rank_block(len(up), up.dtype),
        num_warps=tiles.warps, num_stages=tiles.stages, **FUSION,
    )  # fmt: skip


def launch_backward(
    upstreams: Sequence[torch.Tensor],
    x: torch.Tensor,
    low: torch.Tensor,
    projections: Sequence[Projection],
    places: Sequence[int],
    seeds: torch.Tensor | None,
    dropout_p: float,
    *,
    with_x: bool,
    with_A: bool,
    with_B: bool,
    plan: Plan | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients by x and the adapters of one to three projections.

    Args:
        upstreams: (M, O) the gradient by each result, any strides.
        x: (M, K) the forward's input.
        low: what it returned beside the results, of these projections.
        projections: these, one of which at least has an adapter.
        places: the place of each one's seed.
        seeds: the forward's.
        dropout_p: likewise.
        with_x: whether the gradient by x is wanted.
        with_A: whether those by A are.
        with_B: whether those by B are.
        plan: how; by default what ``backward_plan`` or a search chooses.

    Returns:
        (M, K) of x's dtype, empty where it is not wanted; and the gradients by all A (r, K), then all B (O, r), one
        after the other in one buffer of the adapters' dtype, without those that are not wanted.
    """
    with on_device_of(x):
        rows, columns = x.shape
        slots = slots_of(projections, places, upstreams)
        with_adapter = [slot for slot in slots if slot.rank]
        problem = described(x, slots, dropout=dropout_p > 0)
        if plan is None:
            default = backward_plan(problem)
            search = functools.partial(
                launch_backward, upstreams, x, low, projections, places, seeds, dropout_p,
                with_x=with_x, with_A=with_A, with_B=with_B,
            )  # fmt: skip
            plan = tuning.autotuned(
                (*tuning_key("backward", x.device, problem), with_x, with_A, with_B),
                default,
                candidates(default, problem, is_forward=False),
                lambda candidate: search(plan=candidate),
            )
        dropout = Dropout(x if seeds is None else seeds.contiguous(), dropout_p)
        sizes_A = [slot.rank * columns for slot in with_adapter] if with_A else []
        sizes_B = [slot.rank * slot.outputs for slot in with_adapter] if with_B else []
        by_x = torch.empty((rows if with_x else 0, columns), dtype=x.dtype, device=x.device)
        by_adapters = torch.empty(sum(sizes_A) + sum(sizes_B), dtype=low.dtype, device=x.device)
        if not rows:
            return by_x, by_adapters.zero_()
        dlow = torch.empty(low.shape, dtype=low.dtype, device=low.device)
        in_loop = plan.way == "in-loop" and with_x
        if (with_x or with_A) and not in_loop:
            launch_low_gradient(with_adapter, dlow, rows, plan.low)
        if with_x and plan.way != "library":
            launch_gradient(by_x, slots, dropout, dlow, plan)
        elif with_x:
            torch.mm(slots[0].upstream, slots[0].frozen.weight, out=by_x)
            for slot in slots[1:]:
                by_x.addmm_(slot.upstream, slot.frozen.weight)
        updates = with_x and with_A and plan.way == "library" and problem.rank <= WIDEST[low.dtype]
        if with_x and plan.way == "library" and not updates:
            for slot, part in zip(with_adapter, parts_of(dlow, rows, with_adapter), strict=True):
                if dropout_p == 0 and dlow.dtype == x.dtype:
                    by_x.addmm_(part, slot.lora_A)
                else:
                    seed = dropout.seeds[slot.seed :]
                    launch_add(by_x, part, slot.lora_A, dropout.keep_scale, plan.outer, seed, dropout)
        if by_adapters.numel():
            n_chunks, chunk = chunks(problem, min(columns, *(slot.outputs for slot in with_adapter)), plan.outer)
            partial = torch.empty((n_chunks, len(by_adapters)), dtype=torch.float32, device=x.device)
            if with_A:
                launch_by_A(x, with_adapter, dropout, dlow, by_x, partial, chunk, updates, plan.outer)
            if with_B:
                launch_by_B(with_adapter, low, partial, sum(sizes_A), chunk, plan.outer)
            n_blocks = tuning.blocks(len(by_adapters), SUMMED)
            lora_sum_kernel[(n_blocks,)](
                partial, by_adapters, n_chunks, len(by_adapters), BC=SUMMED, num_warps=4, **FUSION
            )
        return by_x, by_adapters


def launch_low_gradient(slots: Sequence[Slot], dlow: torch.Tensor, rows: int, tiles: Tiles) -> None:
    """Store scaling * dY B of all slots."""
    rank = max(slot.rank for slot in slots)
    upstreams, strides = upstreams_of(slots)
    held = rank_block(rank, dlow.dtype)
    parts = tuning.blocks(rank, held)
    lora_low_kernel[(tuning.blocks(rows, tiles.rows) * len(slots) * parts,)](
        *upstreams, *three(slot.lora_B for slot in slots), dlow, dlow,
        rows, *three(slot.outputs for slot in slots), *three(slot.rank for slot in slots),
        *three(slot.seed for slot in slots), *three(slot.frozen.scaling for slot in slots), *strides,
        SLOTS=len(slots), IS_A=False, THRESHOLD=0, QUADS=True, THIN=thin_precision(upstreams[0]),
        BM=tiles.rows, BK=tiles.inner, BR=held, PARTS=parts,
        num_warps=tiles.warps, num_stages=tiles.stages, **FUSION,
    )  # fmt: skip


def launch_gradient(
    by_x: torch.Tensor, slots: Sequence[Slot], dropout: Dropout, dlow: torch.Tensor, plan: Plan
) -> None:
    """Compute the gradient by x, the low-rank products inside the frozen ones."""
    tiles = plan.product
    rows, columns = by_x.shape
    rank = max(slot.rank for slot in slots)
    upstreams, strides = upstreams_of(slots)
    weights, weight_strides = weights_of(slots)
    lora_bwd_kernel[(tuning.blocks(rows, tiles.rows) * tuning.blocks(columns, tiles.others),)](
        *upstreams, *weights, *three(slot.lora_A for slot in slots), *three(slot.lora_B for slot in slots),
        dlow, by_x, dropout.seeds,
        rows, columns, *three(slot.outputs for slot in slots), *three(slot.rank for slot in slots),
        *three(slot.seed for slot in slots), *three(slot.frozen.scaling for slot in slots), dropout.keep_scale,
        *strides, *weight_strides,
        SLOTS=len(slots), IN_LOOP=plan.way == "in-loop", **dropout.words(columns), PRECISION=precision(),
        THIN=thin_precision(by_x), BM=tiles.rows, BN=tiles.others, BK=tiles.inner, BR=rank_block(rank, dlow.dtype),
        GROUP=GROUP,
        num_warps=tiles.warps, num_stages=tiles.stages, **FUSION,
    )  # fmt: skip


def launch_by_A(
    x: torch.Tensor,
    slots: Sequence[Slot],
    dropout: Dropout,
    dlow: torch.Tensor,
    by_x: torch.Tensor,
    partial: torch.Tensor,
    chunk: int,
    updates: bool,
    tiles: Tiles,
) -> None:
    """Store what every chunk of rows adds to the gradients by A and, if asked, add the low-rank term to that by x."""
    rank = max(slot.rank for slot in slots)
    held = rank_block(rank, dlow.dtype)
    lora_bwd_a_kernel[tuning.blocks(x.shape[1], tiles.others), len(partial), tuning.blocks(rank, held)](
        x, *three(slot.lora_A for slot in slots), dlow, by_x, partial, dropout.seeds,
        *x.shape, *three(slot.rank for slot in slots), *three(slot.seed for slot in slots), dropout.keep_scale,
        chunk, partial.shape[1], *x.stride(),
        SLOTS=len(slots), UPDATE=updates, **dropout.words(x.shape[1]), THIN=thin_precision(x),
        BM=tiles.rows, BC=tiles.others, BR=held,
        num_warps=tiles.warps, num_stages=tiles.stages, **FUSION,
    )  # fmt: skip


def launch_by_B(
    slots: Sequence[Slot], low: torch.Tensor, partial: torch.Tensor, start: int, chunk: int, tiles: Tiles
) -> None:
    """Store what every chunk of rows adds to the gradients by B, from column ``start`` of the partial results on."""
    rank = max(slot.rank for slot in slots)
    held = rank_block(rank, low.dtype)
    upstreams, strides = upstreams_of(slots)
    n_columns = tuning.blocks(max(slot.outputs for slot in slots), tiles.others)
    if not n_columns:
        return
    lora_bwd_b_kernel[n_columns, len(partial), tuning.blocks(rank, held) * len(slots)](
        *upstreams, low, partial[:, start:],
        len(upstreams[0]), *three(slot.outputs for slot in slots), *three(slot.rank for slot in slots),
        *three(slot.frozen.scaling for slot in slots), chunk, partial.shape[1], *strides,
        SLOTS=len(slots), THIN=thin_precision(upstreams[0]), BM=tiles.rows, BC=tiles.others, BR=held,
        num_warps=tiles.warps, num_stages=tiles.stages, **FUSION,
    )  # fmt: skip
