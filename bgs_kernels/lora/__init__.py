"""Frozen projections with low-rank adapters."""

from bgs_kernels.lora.api import lora_linear, lora_qkv
from bgs_kernels.lora.dropout import dropout_keep
from bgs_kernels.lora.projection import Projection

__all__ = ["Projection", "dropout_keep", "lora_linear", "lora_qkv"]
