"""V-JEPA 2: the mean of the encoder's tokens, at any size; the predictor is dropped after loading and never runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2RopeAttention

from bgs.models.video import (
    TINY_FRAMES,
    TINY_HEADS,
    TINY_INIT,
    TINY_LAYERS,
    TINY_PATCH,
    TINY_SIZE,
    TINY_WIDTH,
    VideoBackbone,
)


class GridRopeAttention(VJEPA2RopeAttention):
    """V-JEPA 2's attention with the positions of the frames it is given; transformers' are those of `crop_size`.

    An encoder's attention becomes one by assigning its class; its weights and their names stay as they are.

    Attributes:
        grid: patches in a frame, (height, width).
    """

    grid: tuple[int, int]

    def get_position_ids(self, x: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Number frame, row and column of each token (B, N, C), or of the tokens (B, K) that `masks` names."""
        height, width = self.grid
        ids = torch.arange(x.shape[1], device=x.device) if masks is None else masks[:, None]
        return ids // (height * width), ids // width % height, ids % width


class VJEPA2Backbone(VideoBackbone):
    """V-JEPA 2's encoder (Assran et al., 2025), pooled by the mean over its normalised tokens."""

    name = "vjepa2"
    published = "facebook/vjepa2-vitl-fpc64-256"
    model_class = VJEPA2Model
    model_types = ("vjepa2",)
    any_size = True
    # A bare `proj` would also match the patch embedding and the predictor.
    lora_targets = r"encoder\.layer\.\d+\.(?:attention\.(?:query|key|value|proj)|mlp\.(?:fc1|fc2))"
    not_needed = r"predictor\..*"
    not_used = r"predictor\.|pooler\.|classifier\."

    @classmethod
    def tiny_config(cls, overrides: Mapping[str, Any]) -> VJEPA2Config:
        fields: dict[str, Any] = dict(
            crop_size=TINY_SIZE,
            frames_per_clip=TINY_FRAMES,
            patch_size=TINY_PATCH,
            tubelet_size=2,
            hidden_size=TINY_WIDTH,
            num_hidden_layers=TINY_LAYERS,
            num_attention_heads=TINY_HEADS,
            initializer_range=TINY_INIT,
            # The predictor is dropped: as small as the class allows.
            pred_hidden_size=12,
            pred_num_attention_heads=1,
            pred_num_hidden_layers=1,
            pred_num_mask_tokens=1,
        )
        return VJEPA2Config(**{**fields, **overrides})

    @classmethod
    def input_size(cls, config: PreTrainedConfig) -> tuple[int, int]:
        return config.frames_per_clip, config.crop_size

    @classmethod
    def width(cls, config: PreTrainedConfig) -> int:
        return int(config.hidden_size)

    @classmethod
    def prepare(cls, encoder: PreTrainedModel, frames: int) -> None:
        tubelet = encoder.config.tubelet_size
        if frames < tubelet or frames % tubelet:
            raise ValueError(f"frames: {cls.name} takes a multiple of its tubelet size {tubelet}, got {frames}")
        del encoder.predictor
        side = encoder.config.crop_size // encoder.config.patch_size
        attentions: list[Any] = [module for module in encoder.modules() if isinstance(module, VJEPA2RopeAttention)]
        for attention in attentions:
            attention.__class__ = GridRopeAttention
            attention.grid = (side, side)

    def tokens(self, pixels: Tensor) -> Tensor:
        patch = self.model.config.patch_size
        layers: Any = self.stack
        for layer in layers:
            layer.attention.grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        # The encoder alone: the whole model would also gather a masked copy of every token.
        found: Tensor = self.model.encoder(pixel_values_videos=pixels).last_hidden_state
        return found
