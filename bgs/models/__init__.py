"""Backbones, heads and LoRA: from a stimulus to the embedding that is compared with people's judgments."""

from bgs.models.backbone import BACKBONES, Backbone, load_backbone
from bgs.models.embedder import Embedder, Stimuli, set_trainable
from bgs.models.head import HeadConfig
from bgs.models.lora import LoraSettings, adapter_config, apply_lora, check_adapters_receive_gradient
from bgs.models.pooling import Pooling

__all__ = [
    "BACKBONES",
    "Backbone",
    "Embedder",
    "HeadConfig",
    "LoraSettings",
    "Pooling",
    "Stimuli",
    "adapter_config",
    "apply_lora",
    "check_adapters_receive_gradient",
    "load_backbone",
    "set_trainable",
]
