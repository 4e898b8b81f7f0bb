"""Losses and geometry of odd-one-out judgments, with a choice of backends."""

from bgs_kernels.counts import TripletCounts, triplet_counts
from bgs_kernels.dispatch import available_backends, use_backend, why_not
from bgs_kernels.hybrid_loss import HybridLoss, HybridTerms, hybrid_loss
from bgs_kernels.pairwise import pairwise_distance
from bgs_kernels.rank import fractional_rank
from bgs_kernels.rsa import rsa_correlation
from bgs_kernels.triplet import TripletIndex, triplet_loss

__version__ = "0.1.0"

__all__ = [
    "HybridLoss",
    "HybridTerms",
    "TripletCounts",
    "TripletIndex",
    "available_backends",
    "fractional_rank",
    "hybrid_loss",
    "pairwise_distance",
    "rsa_correlation",
    "triplet_counts",
    "triplet_loss",
    "use_backend",
    "why_not",
]
