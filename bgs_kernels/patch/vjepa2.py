"""The attention of transformers' V-JEPA 2: queries, keys and values in one product, rotation inside attention."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from bgs_kernels.attention import rope_table
from bgs_kernels.attention.block import attend
from bgs_kernels.patch.projections import project
from bgs_kernels.patch.self_attention import FusedSelfAttention

_POSITIONS = ("get_position_ids", "apply_rotary_embeddings", "_get_frame_pos", "_get_height_pos")


class FusedVJEPA2Attention(FusedSelfAttention):
    """V-JEPA 2's attention; the table of rotations is computed once for a grid, in float32 whatever the model's dtype.

    A subclass may say its grid in tokens by an attribute ``grid``, (height, width).
    """

    kind = "attention of V-JEPA 2"
    query: nn.Module
    key: nn.Module
    value: nn.Module
    proj: nn.Module
    num_attention_heads: int
    attention_head_size: int
    dropout_prob: float
    scaling: float
    grid_size: int

    @classmethod
    def why_not(cls, module: nn.Module, family: type[nn.Module]) -> str | None:
        """Say why a module cannot take this form on, or None."""
        own = [name for name in _POSITIONS if getattr(type(module), name) is not getattr(family, name)]
        if own and not hasattr(module, "grid"):
            return f"{type(module).__name__} has positions of its own ({', '.join(own)}) and no attribute `grid`"
        return super().why_not(module, family)

    def forward(
        self, hidden_states: torch.Tensor, position_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Let tokens (B, N, C) attend to one another; the second result is None: there are no weights."""
        tokens, (height, width) = hidden_states.shape[1], getattr(self, "grid", (self.grid_size, self.grid_size))
        reason = self.obstacle(self.dropout_prob, *args, **kwargs)
        if position_mask is not None:
            reason = "tokens come with a position mask"
        elif tokens == 0 or tokens % (height * width):
            reason = f"{tokens} tokens are no whole number of frames of {height} x {width}"
        if reason is not None:
            self.fall_back(reason)
            plain = super().forward(hidden_states, position_mask, *args, **kwargs)
            return cast("tuple[torch.Tensor, torch.Tensor | None]", plain)
        query, key, value = project(self, hidden_states, self.query, self.key, self.value)
        rope = rope_table(
            (tokens // (height * width), height, width),
            self.attention_head_size,
            form="tiled",
            device=query.device,
            dtype=torch.promote_types(query.dtype, torch.float32),
        )
        attended = attend(query, key, value, heads=self.num_attention_heads, scale=self.scaling, rope=rope)
        return self.proj(attended), None
