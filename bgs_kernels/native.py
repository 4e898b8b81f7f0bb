"""The compiled module ``bgs_kernels._native``: whether it is there, what it can read, how tensors are handed to it, and
on how many threads it computes.
"""

from __future__ import annotations

import torch

from bgs_kernels.dispatch import Request
from bgs_kernels.pairwise import reference as pairwise

try:
    from bgs_kernels import _native as module
except ImportError as error:
    module = None  # type: ignore[assignment]
    MISSING: str | None = f"bgs_kernels._native is not built: {error}"
else:
    MISSING = None

__all__ = [
    "DTYPES",
    "METRICS",
    "MISSING",
    "argument",
    "device_and_stream",
    "elsewhere",
    "module",
    "threads",
    "why_not_cuda",
]

DTYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.int64: 4,
    torch.int32: 5,
    torch.int16: 6,
    torch.int8: 7,
    torch.uint8: 8,
    torch.bool: 9,
}
"""The numbers of dtypes in csrc/tensor.h."""

METRICS = {metric: number for number, metric in enumerate(pairwise.METRICS)}
"""The numbers of metrics in csrc/cpu/hybrid_loss.h."""

Argument = tuple[int, int, tuple[int, ...]] | None


def argument(tensor: torch.Tensor | None) -> Argument:
    """Give what csrc takes for a tensor: its address, the number of its dtype, and its strides in elements."""
    return None if tensor is None else (tensor.data_ptr(), DTYPES[tensor.dtype], tensor.stride())


def elsewhere(request: Request) -> str | None:
    """Say that a tensor of a call is not in the CPU's memory, where it could be read, or None."""
    for name, tensor in request.tensors.items():
        if tensor.device.type != "cpu":
            return f"{name} is on {tensor.device}, and this runs on the CPU"
    return None


def why_not_cuda() -> str | None:
    """Say why csrc cannot run on a CUDA device here, or None."""
    if module is None:
        return MISSING
    if not hasattr(module, "cuda_hybrid_loss_small"):
        return "bgs_kernels._native was built without CUDA"
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "no CUDA device"
    return None


def device_and_stream(tensor: torch.Tensor) -> tuple[int, int]:
    """Give the number of a tensor's CUDA device and the current stream there."""
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def threads() -> int:
    """Say how many threads a call may use: as many as torch's own operators."""
    return torch.get_num_threads()
