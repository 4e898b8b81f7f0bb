"""The head between an encoder's embedding and the space in which people's judgments are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

HeadKind = Literal["mlp", "linear", "none"]
HeadInit = Literal["default", "identity"]


@dataclass(frozen=True)
class HeadConfig:
    """What the head is.

    Attributes:
        kind: `mlp`, the published Linear-LayerNorm-ReLU-Dropout; `linear`; or `none`, the encoder's embedding itself.
        dim: width of the output of `mlp` and of a `linear` head with the default initialisation.
        dropout: probability with which `mlp` drops a unit in training, in [0, 1).
        init: how a `linear` head starts: `default`, torch's random initialisation, or `identity`, a square matrix
            without bias that leaves the encoder's embedding as it is, at the encoder's width.
    """

    kind: HeadKind = "mlp"
    dim: int = 128
    dropout: float = 0.3
    init: HeadInit = "default"

    def __post_init__(self) -> None:
        if self.kind not in get_args(HeadKind):
            raise ValueError(f"head.kind: {self.kind!r}; expected one of {', '.join(get_args(HeadKind))}")
        if self.init not in get_args(HeadInit):
            raise ValueError(f"head.init: {self.init!r}; expected one of {', '.join(get_args(HeadInit))}")
        if self.init == "identity" and self.kind != "linear":
            raise ValueError(f"head.init: identity is for a linear head, not for {self.kind!r}")
        if self.dim < 1:
            raise ValueError(f"head.dim: {self.dim}; expected at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"head.dropout: {self.dropout}; expected a probability in [0, 1)")

    def output_dim(self, input_dim: int) -> int:
        """Width of the head's output for an encoder of width `input_dim`."""
        return input_dim if self.kind == "none" or self.init == "identity" else self.dim


def build_head(config: HeadConfig, input_dim: int) -> nn.Module:
    """Build the head for an encoder of width `input_dim`; its random weights come from torch's current state."""
    if config.kind == "none":
        return nn.Identity()
    if config.kind == "mlp":
        return nn.Sequential(
            nn.Linear(input_dim, config.dim), nn.LayerNorm(config.dim), nn.ReLU(), nn.Dropout(config.dropout)
        )
    if config.init == "identity":
        head = nn.Linear(input_dim, input_dim, bias=False)
        nn.init.eye_(head.weight)
        return head
    return nn.Linear(input_dim, config.dim)


def unit_length(vectors: Tensor) -> Tensor:
    """Scale vectors to L2 length 1 in float32; a zero vector stays zero and passes its gradient on unscaled.

    Args:
        vectors: (..., D) of any float dtype.

    Returns:
        (..., D) float32 (float64 for float64 input).
    """
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(length == 0, torch.ones_like(length), length)
