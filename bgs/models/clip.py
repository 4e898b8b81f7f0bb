"""CLIP's vision tower on single frames: the mean over frames of the projected classification token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)

from bgs.models.video import TINY_HEADS, TINY_LAYERS, TINY_PATCH, TINY_SIZE, TINY_WIDTH, VideoBackbone

# CLIP knows no clips: its configuration says nothing about frames.
_DEFAULT_FRAMES = 8


class CLIPBackbone(VideoBackbone):
    """CLIP (Radford et al., 2021), each frame embedded by itself and the frames averaged.

    The tokens of a clip are those of its frames, normalised and projected into CLIP's embedding space.
    """

    name = "clip"
    published = "openai/clip-vit-base-patch32"
    model_class = CLIPVisionModelWithProjection
    model_types = ("clip", "clip_vision_model")
    lora_targets = (
        r"vision_model\.encoder\.layers\.\d+\.(?:self_attn\.(?:q_proj|k_proj|v_proj|out_proj)|mlp\.(?:fc1|fc2))"
    )
    not_used = r"text_model\.|text_projection\.|logit_scale$|.*\.position_ids$"

    @classmethod
    def tiny_config(cls, overrides: Mapping[str, Any]) -> CLIPVisionConfig:
        fields: dict[str, Any] = dict(
            image_size=TINY_SIZE,
            patch_size=TINY_PATCH,
            hidden_size=TINY_WIDTH,
            projection_dim=TINY_WIDTH,
            num_hidden_layers=TINY_LAYERS,
            num_attention_heads=TINY_HEADS,
            intermediate_size=4 * TINY_WIDTH,
        )
        return CLIPVisionConfig(**{**fields, **overrides})

    @classmethod
    def encoder_config(cls, fields: dict[str, Any]) -> PreTrainedConfig | None:
        if fields["model_type"] != "clip":
            return None
        # Both towers project to the outer projection_dim; the vision part's own may be left at its default.
        full: Any = CLIPConfig(**fields)
        vision: CLIPVisionConfig = full.vision_config
        vision.projection_dim = full.projection_dim
        return vision

    @classmethod
    def input_size(cls, config: PreTrainedConfig) -> tuple[int, int]:
        return _DEFAULT_FRAMES, cls.square(config.image_size)

    @classmethod
    def width(cls, config: PreTrainedConfig) -> int:
        return int(config.projection_dim)

    @classmethod
    def prepare(cls, encoder: PreTrainedModel, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"frames: {cls.name} takes at least 1, got {frames}")

    @property
    def class_tokens(self) -> int:
        return self.preprocess.frames

    @property
    def stack_name(self) -> str:
        return "vision_model.encoder.layers"

    def tokens(self, pixels: Tensor) -> Tensor:
        vision = self.model.vision_model
        hidden = self.by_clip(vision(pixel_values=pixels.flatten(0, 1)).last_hidden_state)
        # CLIP projects its class token alone; the patches go the same way into the same space.
        parts = hidden.split([self.class_tokens, hidden.shape[1] - self.class_tokens], 1)
        return torch.cat([self.model.visual_projection(vision.post_layernorm(part)) for part in parts], 1)

    def by_clip(self, hidden: Tensor) -> Tensor:
        # (B T, 1 + P, C) -> (B, T + T P, C)
        clips = hidden.unflatten(0, (-1, self.preprocess.frames))
        return torch.cat([clips[:, :, 0], clips[:, :, 1:].flatten(1, 2)], 1)
