"""3-D rotary position embedding of video tokens: the tables of cosines and sines by which queries and keys are turned.
They are separate from the turning because a model needs them once for all its layers, and a kernel reads them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from bgs_kernels.checks import check_choice

FORMS = ("tiled", "true")

BASE = 10_000.0
"""Of the geometric series of frequencies (Su et al., 2021)."""


@dataclass(frozen=True, eq=False)
class Rope:
    """What every token's query and key is multiplied by.

    A row x of a token becomes ``x * cos + turned(x) * sin``, where ``turned`` swaps the two entries of every pair
    (2m, 2m + 1) and negates the one that comes first: (x_0, x_1) -> (-x_1, x_0).

    Args:
        cos: (N, head_dim) float32 (float64 for models of float64), 1 where nothing is turned.
        sin: the same shape and dtype, 0 where nothing is turned.
    """

    cos: torch.Tensor
    sin: torch.Tensor


def rope_table(
    grid: tuple[int, int, int],
    head_dim: int,
    *,
    form: str,
    spatial_extent: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Rope:
    """Compute the rotation of every token of a grid, in order of frame, row and column.

    A head's entries are three groups of D = 2 * ((head_dim // 3) // 2), turned by the token's frame, row and column,
    and a rest that is not turned. The m-th of D / 2 frequencies is BASE^(-2m / D), and

    * "true": the pair (2m, 2m + 1) turns by the m-th frequency, as V-JEPA 2.1 does;
    * "tiled": entry e of a group turns by frequency e mod D / 2, as V-JEPA 2.0 does: the entries of a pair turn by
      different angles, which its weights were trained with.

    The angles are computed in ``dtype`` whatever the model computes in: bfloat16 knows an angle of 31 rad, that of the
    last of 32 frames, to 0.06 rad. Tables of a grid are kept: do not write into them.

    Args:
        grid: tokens by time, height and width; N is their product.
        head_dim: width of a head, at least 6.
        form: "tiled" or "true".
        spatial_extent: stretches the positions of rows and columns to run from 0 to this number (V-JEPA 2.1: 15);
            None counts them by 1.
        device: where the table is.
        dtype: float32, or float64.

    Returns:
        cos and sin, (N, head_dim) each.

    Raises:
        ValueError: the grid is empty, the head too narrow, or the form or dtype is not one of those.

    Source:
        Assran et al., 2025, arXiv 2506.09985.
    """
    check_choice("form", form, FORMS)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"grid: expected tokens by time, height and width, at least 1 each, got {tuple(grid)}")
    if head_dim < 6:
        raise ValueError(f"head_dim: expected at least 6, two for each axis, got {head_dim}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: expected float32 or float64, got {str(dtype).removeprefix('torch.')}")
    make = _make if torch.compiler.is_compiling() else _kept
    return make((grid[0], grid[1], grid[2]), head_dim, form, spatial_extent, torch.device(device), dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn rows by a table, see ``Rope``, in the wider of their dtypes; the result has that of x."""
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    first, second = wide.view(*wide.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((-second, first), -1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)


def _make(
    grid: tuple[int, int, int],
    head_dim: int,
    form: str,
    spatial_extent: float | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Rope:
    width = 2 * ((head_dim // 3) // 2)
    frequency = torch.arange(width // 2, dtype=dtype, device=device) / (width / 2)
    frequency = 1.0 / BASE**frequency
    frequency = frequency.repeat(2) if form == "tiled" else frequency.repeat_interleave(2)
    angles = torch.zeros((*grid, head_dim), dtype=dtype, device=device)
    for axis, tokens in enumerate(grid):
        position = torch.arange(tokens, dtype=dtype, device=device)
        if spatial_extent is not None and axis > 0:
            position = position * (spatial_extent / max(tokens - 1, 1))
        shape = [1, 1, 1, width]
        shape[axis] = tokens
        angles[..., axis * width : (axis + 1) * width] = (position[:, None] * frequency).view(shape)
    angles = angles.flatten(0, 2)
    return Rope(angles.cos(), angles.sin())


@functools.lru_cache(maxsize=16)
def _kept(*arguments) -> Rope:  # type: ignore[no-untyped-def]
    with torch.inference_mode(False), torch.no_grad():  # a table that is kept must serve a later backward too
        return _make(*arguments)
