"""The public ops ``lora_linear`` and ``lora_qkv``: their arguments, their checks, and the choice of a backend."""

from __future__ import annotations

from typing import overload

import torch

from bgs_kernels import dispatch
from bgs_kernels.autocast import is_autocast_on
from bgs_kernels.checks import check_number, check_tensor
from bgs_kernels.lora.projection import Projection


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    lora_A: torch.Tensor | None = None,
    lora_B: torch.Tensor | None = None,
    *,
    scaling: float = 1.0,
    dropout_p: float = 0.0,
    seed: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Project through a frozen linear layer and its low-rank adapter: x W^T + b + scaling * dropout(x) A^T B^T.

    The weight is frozen: gradients go to x, lora_A, lora_B and, where it requires one, the bias. The adapter may be of
    float32 beside a weight of half precision, as peft keeps it. Under autocast all are computed in autocast's dtype.

    Args:
        x: (..., K) float16, bfloat16, float32 or float64, any strides.
        weight: (O, K) of x's dtype, which requires no gradient.
        bias: (O,) of x's dtype.
        lora_A: (r, K) of x's dtype or float32; None, with lora_B, for the frozen layer alone.
        lora_B: (O, r) of lora_A's dtype.
        scaling: of the update, at least 0.
        dropout_p: probability in [0, 1) with which an entry of x is dropped from the update; 0 outside training.
        seed: int64, one element on x's device. With it the mask is ``bgs_kernels.lora.dropout_keep``'s on every
            backend; without it one is drawn from torch's generator, so that a checkpointed layer repeats it.
        backend: "auto", "triton" or "reference".

    Returns:
        (..., O) of x's dtype.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype, shape, device, number or backend is not one of those.
    """
    (projection,) = _prepared(x, (Projection(weight, bias, lora_A, lora_B, scaling),), dropout_p, seed, ("",))
    tensors = {
        "x": _cast(x, _compute_dtype(x)),
        "weight": projection.weight,
        "bias": projection.bias,
        "lora_A": projection.lora_A,
        "lora_B": projection.lora_B,
        "seed": seed,
    }
    projected: torch.Tensor = dispatch.run(
        "lora_linear", backend, tensors, scaling=projection.scaling, dropout_p=float(dropout_p)
    )
    return projected


def lora_qkv(
    x: torch.Tensor,
    query: Projection,
    key: Projection,
    value: Projection,
    *,
    dropout_p: float = 0.0,
    seed: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Project one input to queries, keys and values, each with its own adapter or none; see ``lora_linear``.

    Args:
        x: (..., K) float16, bfloat16, float32 or float64, any strides.
        query: the projection (O, K) to queries.
        key: likewise.
        value: likewise.
        dropout_p: probability in [0, 1) with which an entry of x is dropped from an update; each draws its own mask.
        seed: (3,) int64 on x's device, one for each projection, see ``lora_linear``.
        backend: "auto", "triton" or "reference".

    Returns:
        queries, keys and values, (..., O) each, of x's dtype.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype, shape, device, number or backend is not one of those.
    """
    names = ("query.", "key.", "value.")
    projections = _prepared(x, (query, key, value), dropout_p, seed, names)
    queries, keys, values = dispatch.run(
        "lora_qkv",
        backend,
        {"x": _cast(x, _compute_dtype(x)), "seed": seed},
        projections=projections,
        dropout_p=float(dropout_p),
    )
    return queries, keys, values


def _prepared(
    x: torch.Tensor,
    projections: tuple[Projection, ...],
    dropout_p: float,
    seed: torch.Tensor | None,
    names: tuple[str, ...],
) -> tuple[Projection, ...]:
    """Check the arguments and cast the projections as autocast asks."""
    check_tensor("x", x, kind="a floating-point")
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"x: expected shape (..., K) with K >= 1, got {tuple(x.shape)}")
    check_number("dropout_p", dropout_p)
    if dropout_p >= 1:
        raise ValueError(f"dropout_p: expected a probability in [0, 1), got {dropout_p!r}")
    if seed is not None:
        check_tensor("seed", seed, kind="an integer")
        if seed.dtype != torch.int64 or seed.numel() != len(projections) or seed.device != x.device:
            raise ValueError(
                f"seed: expected {len(projections)} int64 on {x.device}, got {seed.numel()} "
                f"{str(seed.dtype).removeprefix('torch.')} on {seed.device}"
            )
    return tuple(_checked(x, each, name) for each, name in zip(projections, names, strict=True))


def _checked(x: torch.Tensor, projection: Projection, name: str) -> Projection:
    weight, bias, lora_A, lora_B, scaling = projection
    check_number(f"{name}scaling", scaling)
    check_tensor(f"{name}weight", weight, kind="a floating-point")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{name}weight: expected shape (O, {x.shape[-1]}) for x of {tuple(x.shape)}, got {tuple(weight.shape)}"
        )
    if weight.requires_grad:
        raise ValueError(f"{name}weight: is frozen here and gets no gradient, but requires one; pass it detached")
    given = {f"{name}weight": (weight, weight.shape)}
    if bias is not None:
        given[f"{name}bias"] = (bias, weight.shape[:1])
    if (lora_A is None) != (lora_B is None):
        raise ValueError(f"{name}lora_A, {name}lora_B: expected both or none")
    if lora_A is not None and lora_B is not None:
        rank = lora_A.shape[0] if lora_A.dim() == 2 else 0
        if rank == 0:
            raise ValueError(f"{name}lora_A: expected shape (r, {x.shape[-1]}) with r >= 1, got {tuple(lora_A.shape)}")
        given[f"{name}lora_A"] = (lora_A, torch.Size((rank, x.shape[-1])))
        given[f"{name}lora_B"] = (lora_B, torch.Size((weight.shape[0], rank)))
        if lora_A.dtype != lora_B.dtype:
            raise ValueError(f"{name}lora_B: expected {lora_A.dtype}, that of lora_A, got {lora_B.dtype}")
    for label, (tensor, shape) in given.items():
        check_tensor(label, tensor, kind="a floating-point")
        if tensor.shape != shape or tensor.device != x.device:
            raise ValueError(
                f"{label}: expected shape {tuple(shape)} on {x.device}, got {tuple(tensor.shape)} on {tensor.device}"
            )
    dtype = _compute_dtype(x)
    cast = Projection(
        _cast(weight, dtype), _cast(bias, dtype), _cast(lora_A, dtype), _cast(lora_B, dtype), float(scaling)
    )
    for label, frozen in ((f"{name}weight", cast.weight), (f"{name}bias", cast.bias)):
        if frozen is not None and frozen.dtype != dtype:
            raise ValueError(f"{label}: expected {dtype}, that of x, got {frozen.dtype}")
    if cast.lora_A is not None and cast.lora_A.dtype not in (torch.float32, dtype):
        raise ValueError(f"{name}lora_A: expected {dtype}, that of x, or float32, got {cast.lora_A.dtype}")
    return cast


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Give the dtype that x is computed in: autocast's where it is on, as for ``torch.nn.functional.linear``."""
    kind = x.device.type
    if x.dtype == torch.float64 or not is_autocast_on(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


@overload
def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor: ...


@overload
def _cast(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None: ...


def _cast(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Give a tensor as autocast does where it is on, float64 left alone."""
    if tensor is None or tensor.dtype in (dtype, torch.float64):
        return tensor
    return tensor.to(dtype) if is_autocast_on(tensor.device.type) else tensor


dispatch.register("lora_linear", "triton", "bgs_kernels.lora.fused")
dispatch.register("lora_qkv", "triton", "bgs_kernels.lora.fused")
dispatch.register("lora_linear", "reference", "bgs_kernels.lora.reference")
dispatch.register("lora_qkv", "reference", "bgs_kernels.lora.reference")
