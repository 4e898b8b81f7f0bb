"""A frozen projection with its adapter, the argument of ``lora_qkv``."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Projection(NamedTuple):
    """A frozen linear layer and, where it is adapted, its low-rank update.

    Args:
        weight: (O, K) frozen.
        bias: (O,), None where there is none.
        lora_A: (r, K), None where there is no adapter.
        lora_B: (O, r), None where there is no adapter.
        scaling: of the update, alpha / r usually.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    lora_A: torch.Tensor | None = None
    lora_B: torch.Tensor | None = None
    scaling: float = 1.0
