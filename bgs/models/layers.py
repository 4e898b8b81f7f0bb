"""Hidden states of an encoder, layer by layer, each reduced to what is wanted of it before the next one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

Layers = Sequence[int] | Literal["all"]


def layer_numbers(layers: Layers, depth: int) -> list[int]:
    """Read a choice of layers: 0 is what enters the first one, i what the i-th gives, and -1 what the last gives.

    Args:
        layers: the numbers, or `all`.
        depth: number of layers of the encoder.

    Returns:
        Numbers from 0 to `depth`, in the order given.

    Raises:
        ValueError: no number, one that is no integer, or one out of range.
    """
    if layers == "all":
        return list(range(depth + 1))
    if isinstance(layers, str) or not len(layers):
        raise ValueError(f"layers: {layers!r}; expected 'all' or at least one number")
    for number in layers:
        if not isinstance(number, int) or isinstance(number, bool) or not -depth - 1 <= number <= depth:
            raise ValueError(f"layers: {number!r}; expected integers from {-depth - 1} to {depth}")
    return [number % (depth + 1) for number in layers]


@contextmanager
def watch_layers(
    stack: nn.ModuleList, numbers: Sequence[int], reduce: Callable[[Tensor], Tensor]
) -> Iterator[dict[int, Tensor]]:
    """Within the block, note a reduction of some hidden states as the layers run; the states themselves are let go.

    Args:
        stack: the layers, which take hidden states first and give them first.
        numbers: as `layer_numbers` gives them.
        reduce: what to keep of hidden states (B, N, C).

    Returns:
        The reduced states by number, filled in by the forward pass.
    """
    found: dict[int, Tensor] = {}

    def before(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        found[0] = reduce(inputs[0] if inputs else named["hidden_states"])

    def after(number: int, _: nn.Module, inputs: Any, output: Any) -> None:
        found[number] = reduce(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for number in set(numbers):
            if number == 0:
                handle = stack[0].register_forward_pre_hook(before, with_kwargs=True)
            else:
                handle = stack[number - 1].register_forward_hook(partial(after, number))
            hooks.callback(handle.remove)
        yield found
