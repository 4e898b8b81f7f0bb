"""A whole batch's loss at the memory of a few clips: gradient caching (Gao et al., 2021, arXiv 2101.06983).

The clips are embedded once without a graph, the loss gives its gradient for every embedding, and each part is embedded
again to carry its gradient into the weights. Random state is replayed, so that dropout masks are the same both times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


def cached_backward(
    embed: Callable[[Part], Tensor],
    parts: Sequence[Part],
    loss: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], None],
) -> Tensor:
    """Compute a loss over all parts of a batch and its gradients, holding the graph of one part at a time.

    Args:
        embed: gives the embeddings (n, D) of one part; called twice for each.
        parts: the batch in pieces.
        loss: from the embeddings (N, D) of all parts to a scalar, scaled as `backward` needs it.
        backward: called with scalars whose gradients are to be accumulated; `Tensor.backward` or the like.

    Returns:
        The embeddings (N, D), detached.
    """
    states, pieces = [], []
    for part in parts:
        states.append(_random_state())
        with torch.no_grad():
            pieces.append(embed(part))
    after = _random_state()
    whole = torch.cat(pieces).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(whole), whole)
    for part, state, share in zip(parts, states, torch.split(gradient, [len(piece) for piece in pieces]), strict=True):
        _set_random_state(state)
        backward((embed(part) * share).sum())
    _set_random_state(after)
    return whole.detach()


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
