"""The checks of arguments that several ops share: each raises an error that names the argument, what was given and what
was expected.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable

import torch

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_KINDS = {
    "an integer": _INTEGERS,
    "a floating-point": _FLOATS,
    "a real": (*_INTEGERS, *_FLOATS, torch.bool),
    "the bool": (torch.bool,),
}


def check_choice(name: str, given: object, allowed: Iterable[str]) -> None:
    """Require one of some words.

    Args:
        name: the argument's name.
        given: its value.
        allowed: the words.

    Raises:
        ValueError: it is none of them.
    """
    allowed = tuple(allowed)
    if given not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {given!r}")


def check_number(name: str, given: float, *, positive: bool = False) -> None:
    """Require a finite number that is at least 0 or, if asked, above it.

    Args:
        name: the argument's name.
        given: its value.
        positive: whether 0 is refused as well.

    Raises:
        ValueError: it is none.
    """
    is_number = type(given) in (float, int) or isinstance(given, numbers.Real)  # the second takes half a microsecond
    if not is_number or not 0 <= given < math.inf or (positive and given == 0):
        raise ValueError(f"{name}: expected a finite number {'>' if positive else '>='} 0, got {given!r}")


def check_tensor(name: str, given: torch.Tensor, *, kind: str) -> None:
    """Require a tensor of a kind of dtype.

    Args:
        name: the argument's name.
        given: its value.
        kind: "an integer", "a floating-point", "a real" or "the bool".

    Raises:
        TypeError: it is no tensor.
        ValueError: its dtype is another.
    """
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(given).__name__}")
    if given.dtype not in _KINDS[kind]:
        raise ValueError(f"{name}: expected {kind} dtype, got {str(given.dtype).removeprefix('torch.')}")


def check_embeddings(name: str, given: torch.Tensor) -> None:
    """Require rows of floating-point numbers, (..., N, D) with D at least 1.

    Args:
        name: the argument's name.
        given: its value.

    Raises:
        TypeError: it is no tensor.
        ValueError: its dtype or its shape is another.
    """
    check_tensor(name, given, kind="a floating-point")
    if given.dim() < 2 or given.shape[-1] == 0:
        raise ValueError(f"{name}: expected shape (..., N, D) with D >= 1, got {tuple(given.shape)}")


def check_sets(name: str, given: torch.Tensor) -> torch.Tensor:
    """Require the embeddings of one set of items, (N, D), or of several, (B, N, D).

    Args:
        name: the argument's name.
        given: its value.

    Returns:
        (B, N, D); B is 1 for one set.

    Raises:
        TypeError: it is no tensor.
        ValueError: its dtype or its shape is another.
    """
    check_embeddings(name, given)
    if given.dim() > 3 or (given.dim() == 3 and len(given) == 0):
        raise ValueError(f"{name}: expected shape (N, D) or (B, N, D) with B >= 1, got {tuple(given.shape)}")
    return given if given.dim() == 3 else given.unsqueeze(0)


def per_set(
    name: str, given: torch.Tensor, shape: tuple[int | str, ...], *, kind: str, embeddings: torch.Tensor
) -> torch.Tensor:
    """Require a constant that comes with the embeddings: one for each set, or one for all of them.

    Args:
        name: the argument's name.
        given: its value.
        shape: its shape for one set; a letter stands for any size.
        kind: its dtype: "an integer", "a floating-point", "a real" or "the bool" one.
        embeddings: (N, D) or (B, N, D), checked.

    Returns:
        (B, *shape), a view.

    Raises:
        TypeError: it is no tensor.
        ValueError: its dtype, device or shape is another, or it requires a gradient.
    """
    check_tensor(name, given, kind=kind)
    if given.device != embeddings.device:
        raise ValueError(f"{name}: expected device {embeddings.device}, that of the embeddings, got {given.device}")
    if given.requires_grad:
        raise ValueError(f"{name}: is a constant here and gets no gradient, but requires one; pass it detached")
    sets = embeddings.shape[0] if embeddings.dim() == 3 else None
    if _fits(given, shape):
        return given.expand(sets or 1, *given.shape)
    if sets is not None and _fits(given, (sets, *shape)):
        return given
    expected = [_written(shape)] if sets is None else [_written((sets, *shape)), _written(shape)]
    raise ValueError(f"{name}: expected shape {' or '.join(expected)}, got {tuple(given.shape)}")


def readable(tensor: torch.Tensor) -> bool:
    """Say whether the values of a tensor may be checked: on a device that would wait for it, and while a function is
    compiled there are none."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_weights(name: str, given: torch.Tensor) -> None:
    """Require values that are finite and not negative.

    Args:
        name: the argument's name.
        given: its value, any shape, ``readable``.

    Raises:
        ValueError: a value is NaN, infinite or negative.
    """
    if given.dtype == torch.bool:
        return
    wrong = ~(given.isfinite() & (given >= 0))
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(f"{name}: expected finite values >= 0, got {given[place].item():g} at {place}")


def _fits(given: torch.Tensor, shape: tuple[int | str, ...]) -> bool:
    return given.dim() == len(shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(given.shape, shape, strict=True)
    )


def _written(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
