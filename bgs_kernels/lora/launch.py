"""What the kernels of projections with adapters are given: slots, buffers and strides, and the order of their
launches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
from bgs_kernels.lora.plan import (
    WAYS,
    WIDEST,
    Plan,
    Problem,
    backward_plan,
    candidates,
    chunks,
    forward_plan,
    rank_block,
    serves_in_loop,
)
from bgs_kernels.lora.projection import Projection
from bgs_kernels.pairwise.fused import FUSION, on_device_of, precision
from bgs_kernels.tuning import Tiles

GROUP = 8
"""Rows of tiles that programs that run together share."""

SUMMED = 512
"""Numbers of a partial result that a program adds."""

SLOTS = 3
"""Projections of one input that a kernel serves."""


class Slots(NamedTuple):
    """One to three projections as the kernels take them, every field filled up to three: what fills is not looked at.

    Args:
        size: how many there are.
        weights: (O, K).
        biases: (O,) or None.
        lora_As: (r, K), contiguous; another's where one has no adapter.
        lora_Bs: (O, r), likewise.
        scalings: of the updates.
        seeds: the places of their seeds.
        outputs: O; 0 where there is no projection.
        ranks: r; 0 where there is no adapter.
        upstreams: (M, O) the gradients by their results; in the forward their weights.
    """

    size: int
    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor | None, ...]
    lora_As: tuple[torch.Tensor, ...]
    lora_Bs: tuple[torch.Tensor, ...]
    scalings: tuple[float, ...]
    seeds: tuple[int, ...]
    outputs: tuple[int, ...]
    ranks: tuple[int, ...]
    upstreams: tuple[torch.Tensor, ...]


def slots_of(
    projections: Sequence[Projection], seeds: Sequence[int], upstreams: Sequence[torch.Tensor] | None = None
) -> Slots:
    """Lay out projections."""
    weights, biases, lora_As, lora_Bs, scalings = zip(*projections, strict=True)
    ranks = tuple([0 if lora_A is None else lora_A.shape[0] for lora_A in lora_As])
    some = next((place for place, rank in enumerate(ranks) if rank), None)
    if some is None:
        lora_As = lora_Bs = weights
    else:
        lora_As = tuple([(lora_As[some] if one is None else one).contiguous() for one in lora_As])
        lora_Bs = tuple([(lora_Bs[some] if one is None else one).contiguous() for one in lora_Bs])
    missing = SLOTS - len(weights)

    def filled(given: tuple[Any, ...]) -> tuple[Any, ...]:
        return given + given[:1] * missing

    return Slots(
        len(weights),
        filled(weights),
        filled(biases),
        filled(lora_As),
        filled(lora_Bs),
        filled(scalings),
        filled(tuple(seeds)),
        tuple([weight.shape[0] for weight in weights]) + (0,) * missing,
        ranks + (0,) * missing,
        filled(weights if upstreams is None else tuple(upstreams)),
    )


def adapted(slots: Slots) -> Slots:
    """Leave out the projections without an adapter."""
    places = [place for place in range(slots.size) if slots.ranks[place]]
    if len(places) == slots.size:
        return slots
    order = (places + places[:1] * SLOTS)[:SLOTS]
    fields: Any = (tuple([field[place] for place in order]) for field in slots[1:])
    return Slots(len(places), *fields)


def alike(tensors: tuple[torch.Tensor, ...], dims: slice) -> tuple[torch.Tensor, ...]:
    """Give matrices that have the same strides along some dimensions: copies where they come in several layouts."""
    if any(each.stride()[dims] != tensors[0].stride()[dims] for each in tensors[1:]):
        return tuple([each.contiguous() for each in tensors])
    return tensors


def upstreams_of(slots: Slots) -> tuple[tuple[torch.Tensor, ...], tuple[int, ...]]:
    """Give the pointers and the strides, those of rows and the one of columns, of the gradients by the results."""
    upstreams = alike(slots.upstreams, slice(1, 2))
    return upstreams, (*[each.stride(0) for each in upstreams], upstreams[0].stride(1))


def problem_of(x: torch.Tensor, slots: Slots, dropout_p: float) -> Problem:
    """Say what a plan depends on."""
    rows, columns = x.shape
    return Problem(
        rows,
        columns,
        sum(slots.outputs),
        max(slots.ranks),
        sum([rank > 0 for rank in slots.ranks]),
        x.dtype,
        slots.lora_As[0].dtype,
        dropout_p,
        precision(),
        tuning.capability(x.device),
        tuning.processors(x.device),
    )


def tuning_key(direction: str, device: torch.device, problem: Problem) -> tuple[object, ...]:
    """Say what is searched for once."""
    sizes = tuning.size_class(problem.rows, problem.columns, problem.outputs, problem.rank)
    words = (problem.slots, problem.dtype, problem.adapter_dtype, problem.dropout > 0, problem.precision)
    return (direction, tuning.name(device), *words, *sizes)


def mask_words(problem: Problem, columns: int) -> dict[str, Any]:
    """Give the words of a kernel that makes masks of rows of some width."""
    return {"THRESHOLD": threshold(problem.dropout), "QUADS": columns % 4 == 0}


def how(tiles: Tiles) -> dict[str, Any]:
    """Give what the compiler is told."""
    return {"num_warps": tiles.warps, "num_stages": tiles.stages, **FUSION}


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
        rows = x.shape[0]
        slots = slots_of(projections, range(len(projections)))
        problem = problem_of(x, slots, dropout_p)
        low = torch.empty(rows * sum(slots.ranks), dtype=problem.adapter_dtype, device=x.device)
        if not rows:
            outputs = slots.outputs[: slots.size]
            return [torch.empty((0, columns), dtype=x.dtype, device=x.device) for columns in outputs], low
        if plan is None:
            default = forward_plan(problem)
            search = functools.partial(launch_forward, x, projections, seeds, dropout_p)
            plan = tuning.autotuned(
                tuning_key("lora forward", x.device, problem),
                default,
                candidates(default, problem, is_forward=True),
                lambda candidate: search(plan=candidate),
            )
        if plan.way != "in-loop":
            launch_low(x, adapted(slots), x if seeds is None else seeds.contiguous(), low, problem, plan.low)
        if plan.way != "library":
            return launch_products(x, slots, low, problem, plan), low
        results = []
        for place, part in enumerate(parts_of(low, rows, slots)):
            result = torch.nn.functional.linear(x, slots.weights[place], slots.biases[place])
            if slots.ranks[place] and low.dtype == x.dtype:
                result.addmm_(part, slots.lora_Bs[place].t(), alpha=slots.scalings[place])
            elif slots.ranks[place]:
                launch_add(result, part, slots.lora_Bs[place].t(), slots.scalings[place], None, problem, plan.outer)
            results.append(result)
        return results, low


def parts_of(low: torch.Tensor, rows: int, slots: Slots) -> list[torch.Tensor]:
    """Give the matrices (M, r) that a buffer holds one after the other."""
    if slots.size == 1:
        return [low.view(rows, slots.ranks[0])]
    ranks = slots.ranks[: slots.size]
    split = torch.split(low, [rows * rank for rank in ranks])  # type: ignore[no-untyped-call]
    return [part.view(rows, rank) for part, rank in zip(split, ranks, strict=True)]


def launch_low(
    x: torch.Tensor, slots: Slots, seeds: torch.Tensor, low: torch.Tensor, problem: Problem, tiles: Tiles
) -> None:
    """Store dropout(x) A^T of projections that all have an adapter."""
    rows, columns = x.shape
    stride_m, stride_k = x.stride()
    held = rank_block(problem.rank, low.dtype)
    parts = tuning.blocks(problem.rank, held)
    n_programs = tuning.blocks(rows, tiles.rows) * parts
    if slots.size > 1 and not problem.dropout:
        lora_low_shared_kernel[(n_programs,)](
            x, *slots.lora_As, low, rows, columns, *slots.ranks, stride_m, stride_k,
            SLOTS=slots.size, THIN=problem.thin, BM=tiles.rows, BK=tiles.inner, BR=held, PARTS=parts, **how(tiles),
        )  # fmt: skip
        return
    scale = 1 / (1 - problem.dropout)
    lora_low_kernel[(n_programs * slots.size,)](
        x, x, x, *slots.lora_As, low, seeds, rows, columns, columns, columns, *slots.ranks, *slots.seeds,
        scale, scale, scale, stride_m, stride_m, stride_m, stride_k,
        SLOTS=slots.size, IS_A=True, **mask_words(problem, columns), THIN=problem.thin,
        BM=tiles.rows, BK=tiles.inner, BR=held, PARTS=parts, **how(tiles),
    )  # fmt: skip


def launch_low_gradient(slots: Slots, dlow: torch.Tensor, problem: Problem, tiles: Tiles) -> None:
    """Store scaling * dY B of projections that all have an adapter."""
    upstreams, strides = upstreams_of(slots)
    held = rank_block(problem.rank, dlow.dtype)
    parts = tuning.blocks(problem.rank, held)
    lora_low_kernel[(tuning.blocks(problem.rows, tiles.rows) * slots.size * parts,)](
        *upstreams, *slots.lora_Bs, dlow, dlow, problem.rows, *slots.outputs, *slots.ranks, *slots.seeds,
        *slots.scalings, *strides,
        SLOTS=slots.size, IS_A=False, THRESHOLD=0, QUADS=True, THIN=problem.thin,
        BM=tiles.rows, BK=tiles.inner, BR=held, PARTS=parts, **how(tiles),
    )  # fmt: skip


def launch_products(
    x: torch.Tensor, slots: Slots, low: torch.Tensor, problem: Problem, plan: Plan
) -> list[torch.Tensor]:
    """Compute the projections, the low-rank product inside the frozen one."""
    tiles = plan.product
    count = slots.size
    results = [torch.empty((x.shape[0], columns), dtype=x.dtype, device=x.device) for columns in slots.outputs[:count]]
    weights = alike(slots.weights, slice(0, 2))
    biases = [weight if bias is None else bias.contiguous() for weight, bias in zip(weights, slots.biases, strict=True)]
    biased = sum((bias is not None) << place for place, bias in enumerate(slots.biases[:count]))
    n_columns = sum(tuning.blocks(columns, tiles.others) for columns in slots.outputs)
    if n_columns:
        lora_fwd_kernel[(tuning.blocks(x.shape[0], tiles.rows) * n_columns,)](
            x, *weights, *biases, *slots.lora_As, *slots.lora_Bs, low, *results, *results[:1] * (SLOTS - count),
            *x.shape, *slots.outputs, *slots.ranks, *slots.scalings, *x.stride(), *weights[0].stride(),
            SLOTS=count, BIASED=biased, IN_LOOP=plan.way == "in-loop", PRECISION=problem.precision, THIN=problem.thin,
            BM=tiles.rows, BN=tiles.others, BK=tiles.inner, BR=rank_block(problem.rank, low.dtype), GROUP=GROUP,
            **how(tiles),
        )  # fmt: skip
    return results


def launch_add(
    out: torch.Tensor,
    low: torch.Tensor,
    up: torch.Tensor,
    factor: float,
    seed: torch.Tensor | None,
    problem: Problem,
    tiles: Tiles,
) -> None:
    """Add factor * low up, a product of (M, r) and (r, C), in place, where dropout by a seed, if there is one, keeps
    the entry."""
    rows, columns = out.shape
    if not columns:
        return
    words = {"THRESHOLD": 0, "QUADS": True} if seed is None else mask_words(problem, columns)
    lora_add_kernel[tuning.blocks(rows, tiles.rows), tuning.blocks(columns, tiles.others)](
        out, low, up, low if seed is None else seed, rows, columns, up.shape[0], factor, *up.stride(),
        **words, THIN=problem.thin, BM=tiles.rows, BC=tiles.others, BR=rank_block(up.shape[0], up.dtype), **how(tiles),
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
        projections: these.
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
        problem = problem_of(x, slots, dropout_p)
        if plan is None:
            default = backward_plan(problem)
            search = functools.partial(
                launch_backward, upstreams, x, low, projections, places, seeds, dropout_p,
                with_x=with_x, with_A=with_A, with_B=with_B,
            )  # fmt: skip
            plan = tuning.autotuned(
                (*tuning_key("lora backward", x.device, problem), with_x, with_A, with_B),
                default,
                candidates(default, problem, is_forward=False),
                lambda candidate: search(plan=candidate),
            )
        learning = adapted(slots) if problem.slots else None
        size_A = columns * sum(slots.ranks) if with_A else 0
        size_B = sum([rank * size for rank, size in zip(slots.ranks, slots.outputs, strict=True)]) if with_B else 0
        by_x = torch.empty((rows if with_x else 0, columns), dtype=x.dtype, device=x.device)
        by_adapters = torch.empty(size_A + size_B, dtype=low.dtype, device=x.device)
        if not rows:
            return by_x, by_adapters.zero_()
        if learning is None or plan.way == "library":
            add_frozen(by_x, slots)
        if learning is None:
            return by_x, by_adapters
        seeds = x if seeds is None else seeds.contiguous()
        dlow = torch.empty(low.shape, dtype=low.dtype, device=x.device)
        if (with_x and plan.way != "in-loop") or (with_A and not (with_x and plan.way == "in-loop")):
            launch_low_gradient(learning, dlow, problem, plan.low)
        if with_x and plan.way != "library":
            launch_gradient(by_x, slots, seeds, dlow, problem, plan)
        updates = with_x and with_A and plan.way == "library" and problem.rank <= WIDEST[low.dtype]
        if with_x and plan.way == "library" and not updates:
            add_low(by_x, learning, seeds, dlow, problem, plan.outer)
        if size_A or size_B:
            n_chunks, chunk = chunks(problem, min(columns, *learning.outputs[: learning.size]), plan.outer)
            partial = torch.empty((n_chunks, size_A + size_B), dtype=torch.float32, device=x.device)
            if size_A:
                launch_by_A(x, learning, seeds, dlow, by_x, partial, chunk, updates, problem, plan.outer)
            if size_B:
                launch_by_B(learning, low, partial, size_A, chunk, problem, plan.outer)
            lora_sum_kernel[(tuning.blocks(size_A + size_B, SUMMED),)](
                partial, by_adapters, n_chunks, size_A + size_B, BC=SUMMED, num_warps=4, **FUSION
            )
        return by_x, by_adapters


def add_frozen(by_x: torch.Tensor, slots: Slots) -> None:
    """Compute the sum of dY W, or nothing where the gradient by x has no rows."""
    if not by_x.shape[0]:
        return
    torch.mm(slots.upstreams[0], slots.weights[0], out=by_x)
    for place in range(1, slots.size):
        by_x.addmm_(slots.upstreams[place], slots.weights[place])


def add_low(
    by_x: torch.Tensor, slots: Slots, seeds: torch.Tensor, dlow: torch.Tensor, problem: Problem, tiles: Tiles
) -> None:
    """Add the low-rank terms to the gradient by x."""
    for place, part in enumerate(parts_of(dlow, by_x.shape[0], slots)):
        lora_A = slots.lora_As[place]
        if problem.dropout:
            seed = seeds[slots.seeds[place] :]
            launch_add(by_x, part, lora_A, 1 / (1 - problem.dropout), seed, problem, tiles)
        elif dlow.dtype == by_x.dtype:
            by_x.addmm_(part, lora_A)
        else:
            launch_add(by_x, part, lora_A, 1.0, None, problem, tiles)


def launch_gradient(
    by_x: torch.Tensor, slots: Slots, seeds: torch.Tensor, dlow: torch.Tensor, problem: Problem, plan: Plan
) -> None:
    """Compute the gradient by x, the low-rank products inside the frozen ones."""
    tiles = plan.product
    rows, columns = by_x.shape
    upstreams, strides = upstreams_of(slots)
    weights = alike(slots.weights, slice(0, 2))
    lora_bwd_kernel[(tuning.blocks(rows, tiles.rows) * tuning.blocks(columns, tiles.others),)](
        *upstreams, *weights, *slots.lora_As, *slots.lora_Bs, dlow, by_x, seeds, rows, columns, *slots.outputs,
        *slots.ranks, *slots.seeds, *slots.scalings, 1 / (1 - problem.dropout), *strides, *weights[0].stride(),
        SLOTS=slots.size, IN_LOOP=plan.way == "in-loop", **mask_words(problem, columns), PRECISION=problem.precision,
        THIN=problem.thin, BM=tiles.rows, BN=tiles.others, BK=tiles.inner, BR=rank_block(problem.rank, dlow.dtype),
        GROUP=GROUP, **how(tiles),
    )  # fmt: skip


def launch_by_A(
    x: torch.Tensor,
    slots: Slots,
    seeds: torch.Tensor,
    dlow: torch.Tensor,
    by_x: torch.Tensor,
    partial: torch.Tensor,
    chunk: int,
    updates: bool,
    problem: Problem,
    tiles: Tiles,
) -> None:
    """Store what every chunk of rows adds to the gradients by A and, if asked, add the low-rank terms to that by x."""
    rows, columns = x.shape
    held = rank_block(problem.rank, dlow.dtype)
    n_chunks, total = partial.shape
    lora_bwd_a_kernel[tuning.blocks(columns, tiles.others), n_chunks, tuning.blocks(problem.rank, held)](
        x, *slots.lora_As, dlow, by_x, partial, seeds, rows, columns, *slots.ranks, *slots.seeds,
        1 / (1 - problem.dropout), chunk, total, *x.stride(),
        SLOTS=slots.size, UPDATE=updates, **mask_words(problem, columns), THIN=problem.thin,
        BM=tiles.rows, BC=tiles.others, BR=held, **how(tiles),
    )  # fmt: skip


def launch_by_B(
    slots: Slots, low: torch.Tensor, partial: torch.Tensor, start: int, chunk: int, problem: Problem, tiles: Tiles
) -> None:
    """Store what every chunk of rows adds to the gradients by B, from column ``start`` of the partial results on."""
    upstreams, strides = upstreams_of(slots)
    held = rank_block(problem.rank, low.dtype)
    n_chunks, total = partial.shape
    n_columns = tuning.blocks(max(slots.outputs), tiles.others)
    lora_bwd_b_kernel[n_columns, n_chunks, tuning.blocks(problem.rank, held) * slots.size](
        *upstreams, low, partial[:, start:], problem.rows, *slots.outputs, *slots.ranks, *slots.scalings, chunk, total,
        *strides,
        SLOTS=slots.size, THIN=problem.thin, BM=tiles.rows, BC=tiles.others, BR=held, **how(tiles),
    )  # fmt: skip


__all__ = ["SLOTS", "WAYS", "backward_plan", "forward_plan", "launch_backward", "launch_forward", "serves_in_loop"]
