"""Distances between the rows of embeddings."""

from bgs_kernels.pairwise.api import pairwise_distance

__all__ = ["pairwise_distance"]
