"""The attention and the layers of transformers' TimeSformer: divided space-time attention without matrices of scores,
and with half the copies of the tokens that the plain layer makes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from bgs_kernels.attention.block import attend
from bgs_kernels.patch.families import Fused

_DIVIDED = "divided_space_time"


class FusedTimesformerAttention(Fused):
    """TimeSformer's attention over whatever tokens it is given: those of a frame, of a patch, or all."""

    kind = "attention of TimeSformer"
    qkv: nn.Module
    attn_drop: nn.Dropout
    num_heads: int
    scale: float

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, ...]:
        """Let tokens (B, N, C) attend to one another, B by B."""
        if output_attentions or (self.attn_drop.training and self.attn_drop.p > 0):
            self.fall_back(_weights_wanted(output_attentions))
            return cast("tuple[torch.Tensor, ...]", super().forward(hidden_states, output_attentions))
        query, key, value = self.qkv(hidden_states).chunk(3, -1)
        return (attend(query, key, value, heads=self.num_heads, scale=self.scale),)


class FusedTimesformerLayer(Fused):
    """A layer of divided space-time attention (Bertasius et al., 2021).

    Tokens lie patch by patch with the frames of a patch next to each other, so the groups of temporal attention are
    views. For spatial attention they are brought together frame by frame, the CLS token in front of each, in one copy:
    the rows of the plain layer in its order, so that every module inside is called with what the plain layer calls it
    with, draws the dropout that it draws, and can be replaced, hooked or adapted as there. CLS is projected for every
    frame as there, 1 row in 197 at 14 x 14 patches: dropout of an adapter differs from frame to frame.
    """

    kind = "layer of TimeSformer"
    config: Any
    drop_path: nn.Module
    temporal_layernorm: nn.Module
    temporal_attention: nn.Module
    temporal_dense: nn.Module
    layernorm_before: nn.Module
    attention: nn.Module
    layernorm_after: nn.Module
    intermediate: nn.Module
    output: nn.Module

    @classmethod
    def why_not(cls, module: nn.Module, family: type[nn.Module]) -> str | None:
        """Say why a layer cannot take this form on, or None."""
        if module.attention_type != _DIVIDED:
            return f"attention_type is {module.attention_type!r}: only its attention is replaced"
        return super().why_not(module, family)

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, ...]:
        """Take tokens (B, 1 + patches * frames, C) one layer on."""
        if output_attentions:
            self.fall_back(_weights_wanted(output_attentions))
            return cast("tuple[torch.Tensor, ...]", super().forward(hidden_states, output_attentions))
        frames = self.config.num_frames
        batch, tokens, width = hidden_states.shape
        patches = (tokens - 1) // frames
        cls, others = hidden_states[:, :1], hidden_states[:, 1:]

        normed = self.temporal_layernorm(others).view(batch * patches, frames, width)
        over_time = self.drop_path(self.temporal_attention(normed)[0])
        others = others + self.temporal_dense(over_time.view(batch, patches * frames, width))

        of_patches = others.view(batch, patches, frames, width)
        of_frames = torch.cat((cls[:, None].expand(-1, frames, -1, -1), of_patches.transpose(1, 2)), 2)
        normed = self.layernorm_before(of_frames.view(batch * frames, 1 + patches, width))
        over_space = self.drop_path(self.attention(normed)[0]).view(batch, frames, 1 + patches, width)

        cls = cls + over_space[:, :, 0].mean(1, keepdim=True)
        of_patches = of_patches + over_space[:, :, 1:].transpose(1, 2)
        hidden_states = torch.cat((cls, of_patches.flatten(1, 2)), 1)
        return (hidden_states + self.drop_path(self.output(self.intermediate(self.layernorm_after(hidden_states)))),)


def _weights_wanted(output_attentions: bool) -> str:
    return "attention weights are asked for" if output_attentions else "attention weights are dropped out"
