"""The public ops ``attention`` and ``rope_3d``: their arguments, their checks, and the choice of a backend."""

from __future__ import annotations

from typing import Literal, overload

import torch

from bgs_kernels import dispatch
from bgs_kernels.attention.rope import Rope
from bgs_kernels.autocast import is_autocast_on
from bgs_kernels.checks import check_number, check_tensor


def rope_3d(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Turn queries or keys by a table of cosines and sines.

    The angles have the table's precision whatever the dtype of x: products are computed in it, the result is rounded to
    x's dtype once.

    Args:
        x: (B, H, N, D) float16, bfloat16, float32 or float64, any strides.
        cos: (N, D) float32 or float64, see ``Rope``; a constant.
        sin: (N, D), likewise.
        backend: "auto", "triton" or "reference".

    Returns:
        (B, H, N, D) in x's dtype.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype, shape, device or backend is not one of those.
    """
    check_tensor("x", x, kind="a floating-point")
    if x.dim() != 4:
        raise ValueError(f"x: expected shape (B, H, N, D), got {tuple(x.shape)}")
    _check_table(x, cos, sin)
    turned: torch.Tensor = dispatch.run("rope_3d", backend, {"x": x, "cos": cos, "sin": sin})
    return turned


@overload
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None = None,
    rope: Rope | None = None,
    key_mask: torch.Tensor | None = None,
    return_lse: Literal[False] = False,
    backend: str = "auto",
) -> torch.Tensor: ...


@overload
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None = None,
    rope: Rope | None = None,
    key_mask: torch.Tensor | None = None,
    return_lse: Literal[True],
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None = None,
    rope: Rope | None = None,
    key_mask: torch.Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Compute attention of every query to all keys, softmax(scale * q k^T) v, without a matrix of scores in memory.

    The formulas, and what holds for a query without any key, stand in ``bgs_kernels.attention.reference``. Under
    autocast the inputs are computed in autocast's dtype, as PyTorch's own attention is.

    Args:
        query: (B, H, N, D) float16, bfloat16, float32 or float64, any strides.
        key: (B, H, M, D) of the same dtype and device.
        value: (B, H, M, D) likewise.
        scale: of the scores; 1 / sqrt(D) by default.
        rope: turns queries and keys first, see ``rope_table``; M = N then.
        key_mask: (B, M) bool, True for the keys that take part; all by default.
        return_lse: whether to return the log-sum-exp of the scores as well.
        backend: "auto", "triton", "flash", "sdpa" or "reference".

    Returns:
        (B, H, N, D) in the query's dtype and, if asked for, (B, H, N) float32 (float64 for float64), which is not
        differentiable.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype, shape, device or backend is not one of those.
    """
    check_tensor("query", query, kind="a floating-point")
    if query.dim() != 4 or query.shape[-1] == 0:
        raise ValueError(f"query: expected shape (B, H, N, D) with D >= 1, got {tuple(query.shape)}")
    sets, heads, _, width = query.shape
    for name, rows in (("key", key), ("value", value)):
        check_tensor(name, rows, kind="a floating-point")
        if rows.dtype != query.dtype or rows.device != query.device:
            raise ValueError(
                f"{name}: expected {query.dtype} on {query.device}, those of query, got {rows.dtype} on {rows.device}"
            )
        if rows.dim() != 4 or rows.shape != (sets, heads, key.shape[2], width):
            raise ValueError(
                f"{name}: expected shape ({sets}, {heads}, M, {width}) for query of {tuple(query.shape)} and key of "
                f"{tuple(key.shape)}, got {tuple(rows.shape)}"
            )
    if key.shape[2] == 0:
        raise ValueError("key: expected at least one key, got none")
    if key_mask is not None:
        check_tensor("key_mask", key_mask, kind="the bool")
        if key_mask.shape != (sets, key.shape[2]) or key_mask.device != query.device:
            raise ValueError(
                f"key_mask: expected shape ({sets}, {key.shape[2]}) on {query.device}, got {tuple(key_mask.shape)} on "
                f"{key_mask.device}"
            )
    if rope is not None:
        if key.shape[2] != query.shape[2]:
            raise ValueError(f"rope: expected as many keys as queries, got {key.shape[2]} and {query.shape[2]}")
        _check_table(query, rope.cos, rope.sin)
    if scale is None:
        scale = width**-0.5
    check_number("scale", scale)
    kind = query.device.type
    if is_autocast_on(kind) and query.dtype != torch.float64:
        query, key, value = (rows.to(torch.get_autocast_dtype(kind)) for rows in (query, key, value))
    tensors = {
        "query": query,
        "key": key,
        "value": value,
        "cos": None if rope is None else rope.cos,
        "sin": None if rope is None else rope.sin,
        "key_mask": key_mask,
    }
    attended, lse = dispatch.run("attention", backend, tensors, scale=float(scale), return_lse=return_lse)
    return (attended, lse.detach()) if return_lse else attended


def _check_table(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    if x.shape[-1] % 2:
        raise ValueError(f"cos: turns pairs of entries, but a head is {x.shape[-1]} wide, an odd number")
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, kind="a floating-point")
        if table.shape != x.shape[-2:] or table.device != x.device:
            raise ValueError(
                f"{name}: expected shape {tuple(x.shape[-2:])} on {x.device}, got {tuple(table.shape)} on "
                f"{table.device}"
            )
        if table.requires_grad:
            raise ValueError(f"{name}: is a constant and gets no gradient, but requires one; pass it detached")


dispatch.register("rope_3d", "triton", "bgs_kernels.attention.fused")
dispatch.register("rope_3d", "reference", "bgs_kernels.attention.reference")
dispatch.register("attention", "triton", "bgs_kernels.attention.fused")
dispatch.register("attention", "flash", "bgs_kernels.attention.flash")
dispatch.register("attention", "sdpa", "bgs_kernels.attention.library")
dispatch.register("attention", "reference", "bgs_kernels.attention.reference")
