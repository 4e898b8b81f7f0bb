"""The backbone around V-JEPA 2.1's encoder: the mean of its tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from bgs.models.checkpoints import Checkpoint
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
from bgs.models.vjepa21.configuration import VJEPA21Config
from bgs.models.vjepa21.modeling import VJEPA21Model

ORIGINALS = {
    "vitb": "https://dl.fbaipublicfiles.com/vjepa2/vjepa2_1_vitb_dist_vitG_384.pt",
    "vitl": "https://dl.fbaipublicfiles.com/vjepa2/vjepa2_1_vitl_dist_vitG_384.pt",
    "vitg": "https://dl.fbaipublicfiles.com/vjepa2/vjepa2_1_vitg_384.pt",
    "vitG": "https://dl.fbaipublicfiles.com/vjepa2/vjepa2_1_vitG_384.pt",
}
"""Where Meta publishes the weights, by size."""


class VJEPA21Backbone(VideoBackbone):
    """V-JEPA 2.1's encoder (Meta, 2026), pooled by the mean over its normalised tokens."""

    name = "vjepa21"
    model_class = VJEPA21Model
    model_types = ("vjepa21",)
    any_size = True
    lora_targets = r"blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.(?:fc1|fc2))"

    @classmethod
    def default_checkpoint(cls) -> Checkpoint:
        """Say how to get one: none is published in a format that could be loaded.

        Raises:
            FileNotFoundError: always.
        """
        url = ORIGINALS["vitl"]
        raise FileNotFoundError(
            f"{cls.name}: no checkpoint is published in transformers' format; get Meta's and convert it:\n"
            f"  curl -O {url}\n"
            f"  python -m bgs.convert vjepa2.1 {url.rsplit('/', 1)[1]} vjepa21-vitl\n"
            "and name the folder as the checkpoint: --checkpoint vjepa21-vitl"
        )

    @classmethod
    def tiny_config(cls, overrides: Mapping[str, Any]) -> VJEPA21Config:
        fields: dict[str, Any] = dict(
            crop_size=TINY_SIZE,
            frames_per_clip=TINY_FRAMES,
            patch_size=TINY_PATCH,
            tubelet_size=2,
            hidden_size=TINY_WIDTH,
            num_hidden_layers=TINY_LAYERS,
            num_attention_heads=TINY_HEADS,
            initializer_range=TINY_INIT,
        )
        return VJEPA21Config(**{**fields, **overrides})

    @classmethod
    def input_size(cls, config: PreTrainedConfig) -> tuple[int, int]:
        return config.frames_per_clip, config.crop_size

    @classmethod
    def width(cls, config: PreTrainedConfig) -> int:
        return int(config.hidden_size)

    @classmethod
    def prepare(cls, encoder: PreTrainedModel, frames: int) -> None:
        tubelet = encoder.config.tubelet_size
        if frames != 1 and (frames < 1 or frames % tubelet):
            raise ValueError(f"frames: {cls.name} takes 1 or a multiple of its tubelet size {tubelet}, got {frames}")

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The encoder's own parameters that an embedding depends on, without those of adapters."""
        # Those of the other modality and of the layers that are not pooled stay as they are: without a gradient,
        # distributed training would wait for them.
        other = "patch_embed|video_mod_embed" if self.preprocess.frames == 1 else "patch_embed_img|img_mod_embed"
        last = len(self.model.norms_block) - 1
        idle = re.compile(rf"(?:{other}|norms_block\.(?!{last}\.)\d+)(?:\.|$)")
        named = self.model.named_parameters()
        return [parameter for name, parameter in named if ".lora_" not in name and not idle.match(name)]

    @property
    def stack_name(self) -> str:
        return "blocks"

    def tokens(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.model(pixel_values_videos=pixels).last_hidden_state
        return found
