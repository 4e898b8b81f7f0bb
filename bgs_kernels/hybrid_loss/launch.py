"""What the kernels of the hybrid loss are given: buffers, strides and tiles, and the order of their launches."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from bgs_kernels import tuning
from bgs_kernels.hybrid_loss.kernels import (
    CLEAR,
    SLOPES,
    hybrid_finish_kernel,
    hybrid_fwd_kernel,
    hybrid_rows_kernel,
    pairs_bwd_kernel,
    pairs_bwd_panels_kernel,
)
from bgs_kernels.pairwise.fused import FUSION, INTERPRETED, ROWS, is_raw, on_device_of, precision
from bgs_kernels.rsa.kernels import MOMENTS
from bgs_kernels.triplet.index import build_places
from bgs_kernels.triplet.kernels import triplet_bwd_kernel

COMBINED = 256
"""Partial results that the last program of a set reads at a time."""

BAND = 8
"""Rows of tiles in a band: programs that run together share 8 + 16 blocks of rows instead of 1 + 128."""

MATRIX_ENTRIES_PER_TRIPLET = 32
"""Up to how many entries of an N x N matrix per triplet the triplets' gradient goes through such a matrix, which costs
8 bytes an entry, rather than through an index of rows, which costs 6 rows of D entries a triplet."""

MATRIX_ROWS = 4096
"""Sets of more rows never get an N x N matrix."""


@dataclass(frozen=True)
class Settings:
    """The numbers and words of a call, and what follows from its tensors."""

    alpha: float
    beta: float
    form: str
    temperature: float
    margin: float
    metric: str
    target_metric: str
    rsa: str


@dataclass(frozen=True)
class Inputs:
    """The tensors of a call with their batch dimension; what was not given is None."""

    x: torch.Tensor
    triplets: torch.Tensor
    target: torch.Tensor | None = None
    target_rows: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    triplet_weights: torch.Tensor | None = None
    triplet_targets: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    @property
    def kind(self) -> str:
        """What the targets are: "dense", "rows" or "none"."""
        if self.target is not None:
            return "dense"
        return "rows" if self.target_rows is not None else "none"


@dataclass(frozen=True)
class Shard:
    """The part of a set's work that one rank does: one of ``ranks`` stretches of tiles of the same length, so that
    programs that run together share rows, and the gradient of rows first..last-1."""

    rank: int
    ranks: int
    first: int
    last: int


def takes_pair_sums(rows: int, count: int) -> bool:
    """Say whether the triplets' gradient goes through an N x N matrix."""
    return count > 0 and rows <= MATRIX_ROWS and rows * rows <= MATRIX_ENTRIES_PER_TRIPLET * count


def state_size(sets: int, rows: int, columns: int, target_columns: int) -> int:
    """Count the numbers that ``State`` holds."""
    of_set: int = SLOPES.value + 3 * rows + columns + (3 * rows + target_columns if target_columns else 0)
    return sets * of_set


class State:
    """What the forward leaves for the backward, views of one float32 buffer: the slopes of every set (B, 8), the
    statistics of rows (B, 3, N) and origins (B, D) of the embeddings and, where there are any, of the target rows."""

    def __init__(self, buffer: torch.Tensor, sets: int, rows: int, columns: int, target_columns: int) -> None:
        sizes = (SLOPES.value, 3 * rows, columns, 3 * rows * bool(target_columns), target_columns)
        parts = torch.split(buffer, [sets * size for size in sizes])  # type: ignore[no-untyped-call]
        self.slopes, self.x_stats, self.x_origin, self.y_stats, self.y_origin = parts


def numbers(tensor: torch.Tensor | None, stand_in: torch.Tensor) -> torch.Tensor:
    """Give what a kernel may read: truth values as bytes, and some tensor in place of none."""
    if tensor is None:
        return stand_in
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def strides(tensor: torch.Tensor | None, count: int) -> tuple[int, ...]:
    return (0,) * count if tensor is None else tensor.stride()


def launch_forward(
    given: Inputs,
    settings: Settings,
    *,
    with_gradient: bool,
    pair_sums: bool,
    shard: Shard | None = None,
    tiles: tuning.Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the terms of every set.

    Args:
        given: the tensors.
        settings: the numbers.
        with_gradient: whether a backward will come.
        pair_sums: whether the triplets' gradient goes through an N x N matrix.
        shard: the part of the tiles to compute, beside all triplets; the terms are then left to ``launch_finish``. All
            ranks must cut the same tiles: they need the same kind of device and the same precision of products, and no
            search may choose the tiles of a shard.
        tiles: what to cut the distances into; by default what ``bgs_kernels.tuning`` chooses.

    Returns:
        losses (B,) and terms (3, B) triplet, r and accuracy, float32; the buffer of ``State``; the triplets'
        derivatives: (B, T, 3) float32, or (B, N, N) int64 sums over the upper triangle; the moments (B, 10, n) of
        tiles, n the same on every rank; and the sums (B, 3, m) of triplet blocks.
    """
    with on_device_of(given.x):
        x, y, kind = given.x, given.target_rows, given.kind
        sets, rows, columns = x.shape
        count = given.triplets.shape[1]
        target_columns = 0 if y is None else y.shape[2]
        raw = is_raw(x, settings.metric)
        heavy = kind == "rows" or given.weights is not None or given.mask is not None
        if tiles is None:
            tiles = tuning.forward_tiles(
                rows,
                columns,
                raw=all_raw(given, settings),
                precision=precision(),
                heavy=heavy,
                capability=tuning.capability(x.device),
            )
            if kind != "none" and shard is None:
                search = functools.partial(launch_forward, given, settings, with_gradient=False, pair_sums=False)
                tiles = tuning.autotuned(
                    tuning_key("forward", given, settings, heavy),
                    tiles,
                    tuning.FORWARD_CANDIDATES,
                    lambda candidate: search(tiles=candidate),
                )
        block_rows, block_columns = triplet_blocks(count, columns)

        n_tiles = tile_first = tile_last = 0
        band = 1
        if kind != "none":
            n_blocks = tuning.blocks(rows, tiles.rows)
            band = min(BAND, max(n_blocks // 16, 1))
            n_tiles = tile_last = upper_tiles(n_blocks, band)
            if shard is not None:
                n_tiles = tuning.blocks(tile_last, shard.ranks)
                tile_first = shard.rank * n_tiles
        n_triplet_blocks = tuning.blocks(count, block_rows)

        with_pair_sums = pair_sums and with_gradient
        options: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
        losses = torch.empty(sets, **options)
        terms = torch.empty((3, sets), **options)
        buffer = torch.empty(state_size(sets, rows, columns, target_columns), **options)
        state = State(buffer, sets, rows, columns, target_columns)
        partial = torch.empty(sets * (MOMENTS.value * n_tiles + 3 * n_triplet_blocks), **options)
        halves = [sets * MOMENTS.value * n_tiles, sets * 3 * n_triplet_blocks]
        moments, triplet_sums = torch.split(partial, halves)  # type: ignore[no-untyped-call]
        moments = moments.view(sets, MOMENTS.value, n_tiles)
        triplet_sums = triplet_sums.view(sets, 3, n_triplet_blocks)
        tickets = torch.empty(sets, dtype=torch.int32, device=x.device)
        if with_pair_sums:
            by_distance = torch.empty((sets, rows, rows), dtype=torch.int64, device=x.device)
        else:
            by_distance = torch.empty((sets, count if with_gradient else 0, 3), **options)
        n_row_programs = (tuning.blocks(rows, ROWS) + 1) * (2 if kind == "rows" else 1)
        weight_sums = terms
        if with_pair_sums and given.triplet_weights is not None:
            weight_sums = torch.empty((sets, n_row_programs), dtype=torch.float64, device=x.device)

        x_strides, y_strides = x.stride(), strides(y, 3)
        weight_strides = strides(given.triplet_weights, 2)
        triplet_weights = numbers(given.triplet_weights, x)
        words = {
            "METRIC": settings.metric,
            "TARGET_METRIC": settings.target_metric,
            "TARGET": kind,
            "HAS_LENGTHS": given.lengths is not None,
            "HAS_TRIPLET_WEIGHTS": given.triplet_weights is not None,
            "PAIR_SUMS": with_pair_sums,
            **FUSION,
        }
        hybrid_rows_kernel[(n_row_programs, sets)](
            x, state.x_stats, state.x_origin,
            numbers(y, x), state.y_stats, state.y_origin,
            numbers(given.lengths, x), tickets, by_distance, triplet_weights, weight_sums,
            rows, columns, target_columns, count,
            *x_strides, *y_strides, *weight_strides,
            BM=ROWS, BK=tuning.power_of_two(columns, 16, 256), num_warps=4, **words,
        )  # fmt: skip
        words |= {
            "RSA": settings.rsa,
            "FORM": settings.form,
            "RAW": raw,
            "RAW_TARGET": is_raw(y, settings.target_metric),
            "HAS_MASK": given.mask is not None,
            "HAS_WEIGHTS": given.weights is not None,
            "HAS_TRIPLETS": count > 0,
            "HAS_TRIPLET_TARGETS": given.triplet_targets is not None,
            "HAS_BETA": settings.beta != 0,
            "WITH_GRADIENT": with_gradient,
            "FINISH": shard is None,
            "PRECISION": precision(),
        }
        hybrid_fwd_kernel[(max(n_tiles + n_triplet_blocks, 1), sets)](
            x, state.x_stats, state.x_origin,
            numbers(y, x), state.y_stats, state.y_origin,
            numbers(given.target, x), numbers(given.mask, x), numbers(given.weights, x),
            given.triplets, triplet_weights, numbers(given.triplet_targets, x), numbers(given.lengths, x),
            moments, triplet_sums, tickets, by_distance, by_distance, weight_sums, losses, terms, state.slopes,
            rows, columns, target_columns, count,
            n_tiles, n_triplet_blocks, n_row_programs, tile_first, tile_last, band,
            settings.alpha, settings.beta, settings.temperature, settings.margin,
            *x_strides, *y_strides, *strides(given.target, 3), *strides(given.mask, 3), *strides(given.weights, 3),
            *given.triplets.stride(), *weight_strides, *strides(given.triplet_targets, 3),
            BM=tiles.rows, BK=tiles.inner, BT=block_rows, BD=block_columns, BC=COMBINED,
            num_warps=tiles.warps, num_stages=tiles.stages, **words,
        )  # fmt: skip
        return losses, terms, buffer, by_distance, moments, triplet_sums


def all_raw(given: Inputs, settings: Settings) -> bool:
    """Say whether all rows are multiplied as they are: products of float32 need smaller tiles."""
    return is_raw(given.x, settings.metric) and (
        given.kind != "rows" or is_raw(given.target_rows, settings.target_metric)
    )


def tuning_key(direction: str, given: Inputs, settings: Settings, heavy: bool) -> tuple[object, ...]:
    """Say what the choice of tiles depends on."""
    of_rows = None if given.target_rows is None else given.target_rows.dtype
    metrics = (settings.metric, settings.target_metric)
    words = (tuning.name(given.x.device), given.x.dtype, of_rows, precision(), *metrics, given.kind, heavy)
    return (direction, *words, *tuning.size_class(*given.x.shape))


def triplet_blocks(count: int, columns: int) -> tuple[int, int]:
    """Choose how many triplets a program takes and how many entries of their rows at a time."""
    if INTERPRETED:  # whose cost is by operation, not by entry
        return tuning.power_of_two(count, 16, 1024), tuning.power_of_two(columns, 16, 256)
    return 16, tuning.power_of_two(columns, 16, 64)


def upper_tiles(n_blocks: int, band: int) -> int:
    """Count the tiles of the upper triangle in bands, with the empty ones in the squares that begin them."""
    n_bands = tuning.blocks(n_blocks, band)
    return int(band * (n_bands * n_blocks - band * (n_bands * (n_bands - 1) // 2)))


def launch_backward(
    upstream: torch.Tensor,
    given: Inputs,
    settings: Settings,
    buffer: torch.Tensor,
    by_distance: torch.Tensor,
    *,
    places: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    shard: Shard | None = None,
    tiles: tuning.Tiles | None = None,
) -> torch.Tensor:
    """Compute the gradient of every set's loss by its rows.

    Args:
        upstream: (B,) the gradient by the losses.
        given: the tensors of the forward.
        settings: its numbers.
        buffer: the buffer of ``State`` that it returned.
        by_distance: the triplets' derivatives that it returned.
        places, starts: the index of the triplets by rows, as ``bgs_kernels.triplet.index`` makes it; it is made here
            if need be.
        shard: the rows whose gradient is wanted.
        tiles: what to cut the pairs into; by default what ``bgs_kernels.tuning`` chooses.

    Returns:
        (B, N, D), or (B, last - first, D) of a shard, in the dtype of the embeddings.
    """
    with on_device_of(given.x):
        x, y, kind = given.x, given.target_rows, given.kind
        sets, rows, columns = x.shape
        count = given.triplets.shape[1]
        target_columns = 0 if y is None else y.shape[2]
        state = State(buffer, sets, rows, columns, target_columns)
        pair_sums = by_distance.dtype == torch.int64
        if not settings.beta:
            kind = "none"
        first, last = (0, rows) if shard is None else (shard.first, shard.last)
        gradient = torch.empty((sets, last - first, columns), dtype=x.dtype, device=x.device)
        if not last - first:
            return gradient
        gathers = count > 0 and not pair_sums
        words: dict[str, Any] = {"METRIC": settings.metric, "HAS_LENGTHS": given.lengths is not None, **FUSION}
        lengths = numbers(given.lengths, x)
        if gathers:
            if places is None or starts is None:
                places, starts = build_places(given.triplets, rows)
            width = tuning.power_of_two(columns, 16, 4096)
            triplet_bwd_kernel[(last - first, sets)](
                x, state.x_stats, given.triplets, by_distance, places, starts, lengths,
                state.slopes[4:], upstream, gradient,
                first, rows, columns, count,
                *x.stride(), *given.triplets.stride(), places.stride(0), starts.stride(0), SLOPES.value,
                upstream.stride(0), *gradient.stride()[:2],
                BE=256 if INTERPRETED else max(1, min(32, 4096 // width)), BD=width, num_warps=4, **words,
            )  # fmt: skip
        if kind == "none" and not pair_sums:
            return gradient if gathers else gradient.zero_()
        raw = is_raw(x, settings.metric)
        heavy = kind == "rows" or given.weights is not None or given.mask is not None
        if tiles is None:
            tiles = tuning.backward_tiles(
                rows,
                columns,
                raw=all_raw(given, settings),
                precision=precision(),
                heavy=heavy,
                capability=tuning.capability(x.device),
            )
            search = functools.partial(
                launch_backward,
                upstream,
                given,
                settings,
                buffer,
                by_distance,
                places=places,
                starts=starts,
                shard=shard,
            )
            tiles = tuning.autotuned(
                tuning_key("backward", given, settings, heavy),
                tiles,
                tuning.BACKWARD_CANDIDATES,
                lambda candidate: search(tiles=candidate),
            )
        tensors = (
            x, state.x_stats, state.x_origin,
            numbers(y, x), state.y_stats, state.y_origin,
            numbers(given.target, x), numbers(given.mask, x), numbers(given.weights, x), lengths,
            by_distance, state.slopes, upstream, gradient,
        )  # fmt: skip
        sizes = (
            rows, columns, target_columns,
            *x.stride(), *strides(y, 3), *strides(given.target, 3), *strides(given.mask, 3), *strides(given.weights, 3),
            upstream.stride(0), *gradient.stride()[:2],
        )  # fmt: skip
        words |= {
            "TARGET_METRIC": settings.target_metric,
            "TARGET": kind,
            "RAW": raw,
            "RAW_TARGET": is_raw(y, settings.target_metric),
            "HAS_MASK": given.mask is not None,
            "HAS_WEIGHTS": given.weights is not None,
            "PAIR_SUMS": pair_sums,
            "ADD": gathers,
            "PRECISION": precision(),
        }
        blocks = {"BM": tiles.rows, "BN": tiles.others, "BK": tiles.inner, "BD": tiles.width}
        n_blocks = tuning.blocks(last - first, tiles.rows)
        if not tiles.panel:
            pairs_bwd_kernel[(n_blocks, tuning.blocks(columns, tiles.width), sets)](
                *tensors, first, last, *sizes, **blocks, num_warps=tiles.warps, num_stages=tiles.stages, **words
            )
            return gradient
        n_programs = min(n_blocks * sets, tuning.processors(x.device))
        panels_dtype = torch.bfloat16 if raw and x.dtype == torch.bfloat16 else torch.float32
        panels = torch.empty((n_programs, tiles.rows, tiles.panel), dtype=panels_dtype, device=x.device)
        sums = torch.empty((n_programs, tiles.rows, columns), dtype=torch.float32, device=x.device)
        pairs_bwd_panels_kernel[(n_programs,)](
            *tensors, panels, sums, first, last, sets, *sizes, PANEL=tiles.panel, **blocks,
            num_warps=tiles.warps, num_stages=tiles.stages, **words,
        )  # fmt: skip
        return gradient


def launch_finish(
    moments: torch.Tensor,
    triplet_sums: torch.Tensor,
    buffer: torch.Tensor,
    given: Inputs,
    settings: Settings,
    *,
    pair_sums: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine what the ranks computed of every set.

    Args:
        moments: (B, 10, n) of the tiles of all ranks, rank after rank, contiguous.
        triplet_sums: (B, 3, m) of all triplet blocks, contiguous.
        buffer: the buffer of ``State`` that ``launch_forward`` returned; its slopes are set.
        given, settings: those of the forward.
        pair_sums: whether ``launch_forward`` returned the triplets' derivatives as sums (B, N, N).

    Returns:
        losses (B,) and terms (3, B) triplet, r and accuracy, float32.
    """
    with on_device_of(given.x):
        sets, rows, columns = given.x.shape
        target_columns = 0 if given.target_rows is None else given.target_rows.shape[2]
        losses = torch.empty(sets, dtype=torch.float32, device=moments.device)
        terms = torch.empty((3, sets), dtype=torch.float32, device=moments.device)
        hybrid_finish_kernel[(sets,)](
            moments, triplet_sums, losses, terms, State(buffer, sets, rows, columns, target_columns).slopes,
            moments.shape[2], triplet_sums.shape[2], settings.alpha, settings.beta, settings.temperature,
            METRIC=settings.metric, TARGET_METRIC=settings.target_metric, TARGET=given.kind, RSA=settings.rsa,
            FORM=settings.form, PAIR_SUMS=pair_sums, HAS_BETA=settings.beta != 0, BC=COMBINED, num_warps=4, **FUSION,
        )  # fmt: skip
        return losses, terms


__all__ = ["CLEAR", "Inputs", "Settings", "Shard", "State", "launch_backward", "launch_finish", "launch_forward"]
