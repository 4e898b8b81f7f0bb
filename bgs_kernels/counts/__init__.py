"""What odd-one-out judgments say about each pair of items."""

from bgs_kernels.counts.api import triplet_counts
from bgs_kernels.counts.reference import TripletCounts

__all__ = ["TripletCounts", "triplet_counts"]
