"""What the operators of all backends ask about how they are called: eagerly, traced, or under a transform."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_transformed(rows: torch.Tensor) -> bool:
    """Say whether a transform of ``torch.func`` is at work or a tensor has a forward-mode tangent: the operators know
    neither, and would take a tangent for zero."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:  # outside of every level no tensor has a tangent
        return False
    return forward_ad.unpack_dual(rows).tangent is not None  # type: ignore[no-untyped-call]


EAGER = (torch.Tensor, torch.nn.Parameter)
"""The types of tensors that are neither traced nor only shapes, outside of ``torch.compile``."""


def is_eager(tensor: torch.Tensor) -> bool:
    """Say whether kernels may be launched on a tensor here and now: it is neither traced nor only a shape."""
    return type(tensor) in EAGER and not torch.compiler.is_compiling()


def refuse_second_derivative(ctx, *others):  # type: ignore[no-untyped-def]
    """Be the backward of an operator that is a gradient itself."""
    raise RuntimeError(
        "the kernels' gradient has no derivative of its own; pass backend='reference' to differentiate twice"
    )
