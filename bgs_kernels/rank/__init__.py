"""Ranks of values, with ties."""

from bgs_kernels.rank.api import fractional_rank

__all__ = ["fractional_rank"]
