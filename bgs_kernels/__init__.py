"""Losses and geometry of odd-one-out judgments and projections and attention of video transformers, with a choice of
backends."""

from bgs_kernels.attention import Rope, attention, lora_attention, rope_3d, rope_table
from bgs_kernels.counts import TripletCounts, triplet_counts
from bgs_kernels.dispatch import available_backends, use_backend, why_not
from bgs_kernels.hybrid_loss import HybridLoss, HybridTerms, hybrid_loss
from bgs_kernels.lora import Projection, lora_linear, lora_qkv
from bgs_kernels.pairwise import pairwise_distance
from bgs_kernels.patch import FallbackWarning, accelerate, register_family, restore
from bgs_kernels.rank import fractional_rank
from bgs_kernels.rsa import rsa_correlation
from bgs_kernels.triplet import TripletIndex, triplet_loss

__version__ = "0.1.0"

__all__ = [
    "FallbackWarning",
    "HybridLoss",
    "HybridTerms",
    "Projection",
    "Rope",
    "TripletCounts",
    "TripletIndex",
    "accelerate",
    "attention",
    "available_backends",
    "fractional_rank",
    "hybrid_loss",
    "lora_attention",
    "lora_linear",
    "lora_qkv",
    "pairwise_distance",
    "register_family",
    "restore",
    "rope_3d",
    "rope_table",
    "rsa_correlation",
    "triplet_counts",
    "triplet_loss",
    "use_backend",
    "why_not",
]
