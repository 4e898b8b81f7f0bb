"""The loss of odd-one-out judgments."""

from bgs_kernels.triplet.api import triplet_loss
from bgs_kernels.triplet.index import TripletIndex

__all__ = ["TripletIndex", "triplet_loss"]
