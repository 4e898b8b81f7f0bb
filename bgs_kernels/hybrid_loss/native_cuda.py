"""The hybrid loss of small sets by csrc on a CUDA device: value and gradient in one cooperative launch."""

from __future__ import annotations

import functools
from typing import Any

import torch

from bgs_kernels import native
from bgs_kernels.dispatch import Request
from bgs_kernels.pairwise.reference import METRICS
from bgs_kernels.rsa.reference import PRECOMPUTED, RSA_METHODS
from bgs_kernels.tracing import is_transformed
from bgs_kernels.triplet.reference import FORMS

SERVED = (torch.float16, torch.bfloat16, torch.float32)

WORKSPACE = 2**28
"""About how many bytes a launch may work in: more sets than fit, a launch each for as many as do. Up to a few tens of
megabytes stay in the GPU's cache, but sets of different launches do not overlap."""


def why_not(request: Request) -> str | None:
    """Say why the kernel cannot serve a call whose embeddings are on a CUDA device, or None."""
    if (missing := native.why_not_cuda()) is not None:
        return missing
    for name in ("embeddings", "target_embeddings"):
        rows = request.tensors.get(name)
        if rows is None:
            continue
        if is_transformed(rows):
            return "torch.func and forward-mode derivatives need backend='reference'"
        if rows.device.type != "cuda":
            return f"{name} on {rows.device.type}, not on a CUDA device"
        if rows.dtype not in SERVED:
            return f"{name} of {_name(rows.dtype)}"
        if not 1 <= rows.shape[-2] <= native.module.CUDA_SMALL_ROWS:
            return f"{name} of {rows.shape[-2]} rows, not of 1 to {native.module.CUDA_SMALL_ROWS}"
        if not 1 <= rows.shape[-1] <= native.module.CUDA_SMALL_COLUMNS:
            return f"{name} of {rows.shape[-1]} columns, not of 1 to {native.module.CUDA_SMALL_COLUMNS}"
    for name, tensor in request.tensors.items():
        if tensor.dtype not in native.DTYPES:
            return f"{name} of {_name(tensor.dtype)}"
    if request.options.get("metric") == PRECOMPUTED:
        return "the kernels make their distances themselves"
    if request.options.get("method") == "spearman":
        return "the kernels do not rank"
    return _why_not_on(request.tensors["embeddings"].device.index)


@functools.cache
def _why_not_on(device: int) -> str | None:
    """Say why a device cannot run what csrc was built for, or None."""
    least = min(int(name.split("-")[0]) for name in native.module.build_info()["cuda_architectures"])
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < least:
        return f"device of compute capability {major}.{minor}, built for {least // 10}.{least % 10} and above"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
    no elements unless asked for; all float32, on the device and the current stream of the embeddings.

    The arguments are those of ``bgs_kernels.hybrid_loss.reference.hybrid_loss``.
    """
    sets, rows, columns = embeddings.shape
    count = triplets.shape[1]
    target_columns = 0 if target_embeddings is None else target_embeddings.shape[2]
    device = embeddings.device
    losses = torch.empty(sets, dtype=torch.float32, device=device)
    terms = torch.empty((3, sets), dtype=torch.float32, device=device)
    gradient = torch.empty(embeddings.shape if with_gradient else (0,), dtype=torch.float32, device=device)
    needed = functools.partial(
        native.module.cuda_hybrid_loss_small_workspace,
        rows=rows,
        columns=columns,
        target_columns=target_columns,
        triplets=count,
        target=target is not None or target_embeddings is not None,
        weights=weights is not None,
        triplet_weights=triplet_weights is not None,
        gradient=with_gradient,
    )
    together = max(1, min(sets, WORKSPACE // needed(sets=1)))
    workspace = torch.empty(needed(sets=together), dtype=torch.uint8, device=device)
    tensors = (
        embeddings,
        triplets,
        target,
        target_embeddings,
        mask,
        weights,
        triplet_weights,
        triplet_targets,
        lengths,
    )
    index, stream = native.device_and_stream(embeddings)
    for first in range(0, sets, together):
        part = slice(first, min(first + together, sets))
        arguments: list[Any] = [
            *(native.argument(None if each is None else each[part]) for each in tensors),
            part.stop - first,
            rows,
            columns,
            target_columns,
            count,
            alpha,
            beta,
            FORMS.index(triplet),
            temperature,
            margin,
            METRICS.index(metric),
            METRICS.index(target_metric),
            RSA_METHODS.index(rsa),
            native.argument(losses[part]),
            native.argument(terms[:, part]),
            native.argument(gradient[part] if with_gradient else None),
            workspace.data_ptr(),
            workspace.numel(),
            index,
            stream,
        ]
        native.module.cuda_hybrid_loss_small(*arguments)
    return losses, terms, gradient
