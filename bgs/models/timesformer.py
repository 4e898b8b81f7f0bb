"""TimeSformer: the classification token, the readout of the published recipe."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, TimesformerConfig, TimesformerModel

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

logger = logging.getLogger(__name__)


class TimesformerBackbone(VideoBackbone):
    """TimeSformer (Bertasius et al., 2021), pooled by its normalised CLS token."""

    name = "timesformer"
    published = "facebook/timesformer-base-finetuned-k400"
    model_class = TimesformerModel
    model_types = ("timesformer",)
    lora_targets = (
        r"encoder\.layer\.\d+\.(?:(?:temporal_)?attention\.(?:attention\.qkv|output\.dense)"
        r"|temporal_dense|intermediate\.dense|output\.dense)"
    )
    not_used = r"classifier\."

    @classmethod
    def tiny_config(cls, overrides: Mapping[str, Any]) -> TimesformerConfig:
        fields: dict[str, Any] = dict(
            image_size=TINY_SIZE,
            num_frames=TINY_FRAMES,
            patch_size=TINY_PATCH,
            hidden_size=TINY_WIDTH,
            num_hidden_layers=TINY_LAYERS,
            num_attention_heads=TINY_HEADS,
            initializer_range=TINY_INIT,
            intermediate_size=4 * TINY_WIDTH,
        )
        return TimesformerConfig(**{**fields, **overrides})

    @classmethod
    def input_size(cls, config: PreTrainedConfig) -> tuple[int, int]:
        return config.num_frames, cls.square(config.image_size)

    @classmethod
    def width(cls, config: PreTrainedConfig) -> int:
        return int(config.hidden_size)

    @classmethod
    def prepare(cls, encoder: PreTrainedModel, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"frames: {cls.name} takes at least 1, got {frames}")
        trained = encoder.config.num_frames
        if frames == trained:
            return
        # The layers reshape by config.num_frames, so the configuration and the time embeddings change together;
        # nearest, as TimeSformer itself does when it meets a longer clip.
        logger.warning("timesformer: %d time embeddings stretched over %d frames (nearest)", trained, frames)
        encoder.config.num_frames = frames
        embeddings: Any = encoder.embeddings
        if hasattr(embeddings, "time_embeddings"):
            stretched = nn.functional.interpolate(embeddings.time_embeddings.mT, size=frames, mode="nearest").mT
            embeddings.time_embeddings = nn.Parameter(stretched.detach().contiguous())

    @classmethod
    def fill_zero_embeddings(cls, encoder: PreTrainedModel) -> None:
        # All-zero time embeddings make every order of the frames look alike.
        embeddings: Any = encoder.embeddings
        if hasattr(embeddings, "time_embeddings"):
            nn.init.trunc_normal_(embeddings.time_embeddings, std=encoder.config.initializer_range)

    @property
    def class_tokens(self) -> int:
        return 1

    def tokens(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return found
