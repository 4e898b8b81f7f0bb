"""The self-attention of transformers' VideoMAE: queries, keys and values in one product."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from bgs_kernels.attention.block import attend
from bgs_kernels.patch.projections import project
from bgs_kernels.patch.self_attention import FusedSelfAttention


class FusedVideoMAEAttention(FusedSelfAttention):
    """VideoMAE's self-attention, whose keys have no bias."""

    kind = "attention of VideoMAE"
    query: nn.Module
    key: nn.Module
    value: nn.Module
    num_attention_heads: int
    dropout_prob: float
    scaling: float

    @classmethod
    def why_not(cls, module: nn.Module, family: type[nn.Module]) -> str | None:
        """Say why a module cannot take this form on, or None."""
        if hasattr(module, "q_bias"):
            return "transformers before 5.6 multiplies by the weights of query, key and value and passes over adapters"
        return super().why_not(module, family)

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Let tokens (B, N, C) attend to one another; the second result is None: there are no weights."""
        if (reason := self.obstacle(self.dropout_prob, *args, **kwargs)) is not None:
            self.fall_back(reason)
            plain = super().forward(hidden_states, *args, **kwargs)
            return cast("tuple[torch.Tensor, torch.Tensor | None]", plain)
        # in the order in which the plain module calls them, and so draws their dropout
        key, value, query = project(self, hidden_states, self.key, self.value, self.query)
        return attend(query, key, value, heads=self.num_attention_heads, scale=self.scaling), None
