"""The attention of the vision tower of transformers' CLIP: queries, keys and values in one product."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from bgs_kernels.attention.block import attend
from bgs_kernels.patch.projections import project
from bgs_kernels.patch.self_attention import FusedSelfAttention

_VISION = "clip_vision_model"


class FusedCLIPAttention(FusedSelfAttention):
    """CLIP's attention over the patches of an image; the text tower, whose attention is causal, is left as it is."""

    kind = "attention of CLIP's vision tower"
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module
    num_heads: int
    dropout: float
    scale: float

    @classmethod
    def why_not(cls, module: nn.Module, family: type[nn.Module]) -> str | None:
        """Say why a module cannot take this form on, or None."""
        if cast(Any, module).config.model_type != _VISION:
            return "CLIP's text tower: its attention is causal"
        return super().why_not(module, family)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Let tokens (B, N, C) attend to one another; the second result is None: there are no weights."""
        reason = self.obstacle(self.dropout, *args, **kwargs)
        if attention_mask is not None or kwargs.get("is_causal"):
            reason = "attention is masked"
        if reason is not None:
            self.fall_back(reason)
            plain = super().forward(hidden_states, attention_mask, *args, **kwargs)
            return cast("tuple[torch.Tensor, torch.Tensor | None]", plain)
        query, key, value = project(self, hidden_states, self.q_proj, self.k_proj, self.v_proj)
        return self.out_proj(attend(query, key, value, heads=self.num_heads, scale=self.scale)), None
