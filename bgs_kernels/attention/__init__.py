"""Attention over video tokens, with 3-D rotary embedding inside."""

from bgs_kernels.attention.api import attention, rope_3d
from bgs_kernels.attention.block import attend, lora_attention
from bgs_kernels.attention.rope import Rope, rope_table

__all__ = ["Rope", "attend", "attention", "lora_attention", "rope_3d", "rope_table"]
