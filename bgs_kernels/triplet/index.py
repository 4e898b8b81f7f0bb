"""``TripletIndex``: the triplets of one batch of judgments with the places where every row occurs. It is built once and
used over many steps, so that a backward pass can gather the gradient of a row in a fixed order, without atomics.
"""

from __future__ import annotations

import numbers

import torch

from bgs_kernels import native
from bgs_kernels.checks import readable
from bgs_kernels.tracing import is_transformed

INT32_END = 2**31
"""Places and row numbers are int32 and stay below this."""


class TripletIndex:
    """The triplets of one or several sets of items, with the places where each row of the embeddings occurs in them.

    ``hybrid_loss`` and ``triplet_loss`` take it instead of a tensor of triplets. Reused over steps it saves sorting the
    triplets in each of them, and on the CPU the checks of their values as well: a set that repeats an item in a triplet
    is checked in each call still, for its weight may make that triplet padding. It holds a copy: what becomes of the
    tensor it was made from does not matter to it.

    Args:
        triplets: (T, 3) or (B, T, 3) rows (i, j, k) of a set's embeddings, any integer dtype; k is the odd one.
        rows: N, how many embeddings a set has.

    Attributes:
        triplets: (T, 3) or (B, T, 3) int32, contiguous.
        rows: N.
        places: (B, 3T) int32, B = 1 for (T, 3): the flat positions 3t + p of a set's triplets (p = 0, 1, 2 for i, j, k)
            in the order of the rows that stand there, those of one row ascending.
        starts: (B, N + 1) int32: ``places[b, starts[b, r]:starts[b, r + 1]]`` are the places of row r.
        sound: whether all indices are known to be in range and no triplet to repeat an item. False as well where the
            values could not be read: on another device than the CPU, and inside a compiled function.

    Raises:
        TypeError: triplets is no tensor.
        ValueError: the dtype or shape of triplets, their number or rows is another or, on the CPU, an index is out of
            range.
    """

    triplets: torch.Tensor
    rows: int
    places: torch.Tensor
    starts: torch.Tensor
    sound: bool

    def __init__(self, triplets: torch.Tensor, rows: int) -> None:
        if not isinstance(triplets, torch.Tensor):
            raise TypeError(f"triplets: expected a torch.Tensor, got {type(triplets).__name__}")
        if triplets.is_floating_point() or triplets.is_complex() or triplets.dtype == torch.bool:
            raise ValueError(f"triplets: expected an integer dtype, got {str(triplets.dtype).removeprefix('torch.')}")
        if triplets.dim() not in (2, 3) or triplets.shape[-1] != 3 or (triplets.dim() == 3 and len(triplets) == 0):
            raise ValueError(f"triplets: expected shape (T, 3) or (B, T, 3) with B >= 1, got {tuple(triplets.shape)}")
        if 3 * triplets.shape[-2] >= INT32_END:
            raise ValueError(
                f"triplets: expected at most {(INT32_END - 1) // 3} in a set (places are int32), got"
                f" {triplets.shape[-2]}"
            )
        if not isinstance(rows, numbers.Integral) or isinstance(rows, bool) or not 1 <= rows < INT32_END:
            raise ValueError(f"rows: expected an integer from 1 to {INT32_END - 1}, got {rows!r}")
        self.sound = False
        if readable(triplets):
            given = _of_sets(triplets).long()  # before a large index becomes a small int32
            check_range(given, rows, batched=triplets.dim() == 3)
            self.sound = not bool(repeats_an_item(given).any())
        self.triplets = triplets.to(torch.int32, copy=True, memory_format=torch.contiguous_format)
        self.rows = rows
        self.places, self.starts = build_places(_of_sets(self.triplets), rows)

    def to(self, device: torch.device | str | int) -> TripletIndex:
        """Give the same index on a device; it itself where it is there already."""
        triplets = self.triplets.to(device)
        if triplets is self.triplets:
            return self
        moved = TripletIndex.__new__(TripletIndex)
        moved.triplets, moved.rows, moved.sound = triplets, self.rows, self.sound
        moved.places, moved.starts = self.places.to(device), self.starts.to(device)
        return moved

    def __len__(self) -> int:
        """T, the number of triplets of a set, padding included."""
        return self.triplets.shape[-2]

    def __repr__(self) -> str:
        sets = f"{len(self.triplets)} sets of " if self.triplets.dim() == 3 else ""
        return f"TripletIndex({sets}{len(self)} triplets, rows={self.rows}, device='{self.triplets.device}')"


def build_places(triplets: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find where each row occurs in the triplets of its set; nothing here waits for a device.

    Args:
        triplets: (B, T, 3) integer rows, 3T below 2**31.
        rows: N, how many rows a set has.

    Returns:
        places (B, 3T) and starts (B, N + 1), int32, as described in ``TripletIndex``. Indices out of range are not
        looked for; what is made of them stays within places all the same.
    """
    occurring, places = triplets.int().flatten(1).sort(dim=-1, stable=True)
    every_row = torch.arange(rows + 1, dtype=occurring.dtype, device=occurring.device)
    starts = torch.searchsorted(occurring, every_row.repeat(len(occurring), 1), out_int32=True)
    return places.int(), starts


def check_range(triplets: torch.Tensor, limits: torch.Tensor | int, *, batched: bool) -> None:
    """Require indices from 0 up to, and without, a limit.

    Args:
        triplets: (B, T, 3) integer, ``readable``.
        limits: the limit, or one for each triplet (B, T).
        batched: whether errors name the set.

    Raises:
        ValueError: an index is out of range.
    """
    limits = torch.as_tensor(limits).expand(triplets.shape[:2])
    outside = (triplets < 0) | (triplets >= limits.unsqueeze(-1))
    if outside.any():
        place = outside.nonzero()[0].tolist()
        raise ValueError(
            f"triplets: index {int(triplets[tuple(place)])} out of range for {int(limits[place[0], place[1]])}"
            f" embeddings {place_of(place, batched=batched)}"
        )


def repeats_an_item(triplets: torch.Tensor) -> torch.Tensor:
    """Say which triplets (..., 3) name an item twice: (...) bool."""
    first, second, odd = triplets.unbind(-1)
    return (first == second) | (first == odd) | (second == odd)


def check_items(
    triplets: torch.Tensor, limits: torch.Tensor | int, *, batched: bool, counted: torch.Tensor | bool = True
) -> None:
    """Require the rows of every triplet to exist and those of one that counts to differ.

    Args:
        triplets: (B, T, 3) integer, ``readable``.
        limits: how many rows there are, or how many for each triplet (B, T).
        batched: whether errors name the set.
        counted: (B, T) bool, False where a triplet is padding.

    Raises:
        ValueError: an index is out of range, or a triplet that counts names an item twice.
    """
    if native.module is not None and triplets.numel() and not is_transformed(triplets):
        least = limits if isinstance(limits, int) else int(limits.min())
        sets, count = triplets.shape[:2]
        if native.module.are_sound(native.argument(triplets), sets, count, least, native.threads()):
            return
    check_range(triplets, limits, batched=batched)
    repeated = repeats_an_item(triplets) & counted
    if repeated.any():
        place = repeated.nonzero()[0].tolist()
        row, where = tuple(triplets[tuple(place)].tolist()), place_of(place, batched=batched)
        raise ValueError(f"triplets: expected three different items, got {row} {where}")


def place_of(place: list[int], *, batched: bool) -> str:
    """Write the set, where there are several, and the row of a triplet, as errors do."""
    return f"(set {place[0]}, row {place[1]})" if batched else f"(row {place[1]})"


def _of_sets(triplets: torch.Tensor) -> torch.Tensor:
    return triplets if triplets.dim() == 3 else triplets.unsqueeze(0)
