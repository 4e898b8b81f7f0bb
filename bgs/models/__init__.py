"""Backbones, heads and LoRA: from a stimulus to the embedding that is compared with people's judgments."""

from bgs.models.backbone import BACKBONES, Backbone, load_backbone
from bgs.models.embedder import Embedder, Stimuli, set_trainable
from bgs.models.head import HeadConfig
from bgs.models.lora import LoraSettings, apply_lora, check_adapters_receive_gradient

__all__ = [
    "BACKBONES",
    "Backbone",
    "Embedder",
    "HeadConfig",
    "LoraSettings",
    "Stimuli",
    "apply_lora",
    "check_adapters_receive_gradient",
    "load_backbone",
    "set_trainable",
]
