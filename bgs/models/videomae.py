"""VideoMAE: the mean of the encoder's tokens, at exactly the frames and pixels it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, VideoMAEConfig, VideoMAEModel

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

# Earlier versions of transformers 5 give keys a bias, which the published checkpoints lack and which changes no weight
# of attention, and do not know the names that the biases of queries and values have there.
KEYS_HAVE_BIAS = not hasattr(VideoMAEConfig(), "qv_bias")


class VideoMAEBackbone(VideoBackbone):
    """VideoMAE (Tong et al., 2022), pooled by the mean over its last hidden state.

    A checkpoint fine-tuned with mean pooling has no norm after its last layer: the norm (`fc_norm`) belongs to the
    classifier, comes after the mean, and is left behind with it. A checkpoint from pretraining has a final norm in the
    encoder, and its tokens are averaged after it. Both are `last_hidden_state.mean(1)` of transformers' VideoMAEModel.
    """

    name = "videomae"
    published = "MCG-NJU/videomae-base-finetuned-kinetics"
    model_class = VideoMAEModel
    model_types = ("videomae",)
    lora_targets = (
        r"encoder\.layer\.\d+\.(?:attention\.(?:attention\.(?:query|key|value)|output\.dense)"
        r"|intermediate\.dense|output\.dense)"
    )
    not_needed = r"encoder\.layer\.\d+\.attention\.attention\.key\.bias" if KEYS_HAVE_BIAS else None
    renamed = {r"\.q_bias$": ".query.bias", r"\.v_bias$": ".value.bias"} if KEYS_HAVE_BIAS else None
    not_used = r"classifier\.|fc_norm\.|decoder\.|encoder_to_decoder\.|mask_token$|position_embeddings$"

    @classmethod
    def tiny_config(cls, overrides: Mapping[str, Any]) -> VideoMAEConfig:
        fields: dict[str, Any] = dict(
            image_size=TINY_SIZE,
            num_frames=TINY_FRAMES,
            patch_size=TINY_PATCH,
            tubelet_size=2,
            hidden_size=TINY_WIDTH,
            num_hidden_layers=TINY_LAYERS,
            num_attention_heads=TINY_HEADS,
            initializer_range=TINY_INIT,
            intermediate_size=4 * TINY_WIDTH,
        )
        return VideoMAEConfig(**{**fields, **overrides})

    @classmethod
    def input_size(cls, config: PreTrainedConfig) -> tuple[int, int]:
        return config.num_frames, cls.square(config.image_size)

    @classmethod
    def width(cls, config: PreTrainedConfig) -> int:
        return int(config.hidden_size)

    @classmethod
    def prepare(cls, encoder: PreTrainedModel, frames: int) -> None:
        if frames != encoder.config.num_frames:
            raise ValueError(
                f"frames: this {cls.name} checkpoint takes exactly {encoder.config.num_frames}, got {frames}"
            )

    def tokens(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return found
