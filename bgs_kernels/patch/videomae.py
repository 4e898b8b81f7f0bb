"""The self-attention of transformers' VideoMAE: queries, keys and values in one product."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from bgs_kernels.attention.block import attend
from bgs_kernels.lora import lora_qkv
from bgs_kernels.patch.projections import project, read_linear
from bgs_kernels.patch.self_attention import FusedSelfAttention

_BESIDE = "this release of transformers passes over the adapters of query, key and value"


class FusedVideoMAEAttention(FusedSelfAttention):
    """VideoMAE's self-attention, whose keys have no bias.

    The biases of queries and values are in their layers or, in the first releases of transformers 5, beside them, as
    ``q_bias`` and ``v_bias``. Those releases multiply by the layers' weights without calling the layers, so that
    adapters of the three have no effect there: nothing is done about that here.
    """

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
        adapted = any(hasattr(layer, "base_layer") for layer in (module.query, module.key, module.value))
        return _BESIDE if adapted and hasattr(module, "q_bias") else super().why_not(module, family)

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Let tokens (B, N, C) attend to one another; the second result is None: there are no weights."""
        projected: tuple[torch.Tensor, ...] | str | None = self.obstacle(self.dropout_prob, *args, **kwargs)
        if projected is None:
            projected = self._project(hidden_states)
        if isinstance(projected, str):
            self.fall_back(projected)
            plain = super().forward(hidden_states, *args, **kwargs)
            return cast("tuple[torch.Tensor, torch.Tensor | None]", plain)
        key, value, query = projected  # the order in which the plain module draws their dropout
        return attend(query, key, value, heads=self.num_attention_heads, scale=self.scaling), None

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...] | str:
        """Compute keys, values and queries, or say why they cannot be computed here."""
        layers = (self.key, self.value, self.query)
        if not hasattr(self, "q_bias"):
            return project(self, x, *layers)
        projections = []
        for layer, bias in zip(layers, (None, self.v_bias, self.q_bias), strict=True):
            read = _BESIDE if hasattr(layer, "base_layer") else read_linear(layer, x)
            if isinstance(read, str):
                return read
            projections.append(read.projection._replace(bias=cast("torch.Tensor | None", bias)))
        return lora_qkv(x, *projections)
