"""The loss of odd-one-out judgments."""

from bgs_kernels.triplet.api import triplet_loss

__all__ = ["triplet_loss"]
