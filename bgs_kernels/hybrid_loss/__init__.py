"""The loss of behavioural geometric supervision."""

from bgs_kernels.hybrid_loss.api import HybridLoss, hybrid_loss
from bgs_kernels.hybrid_loss.reference import HybridTerms

__all__ = ["HybridLoss", "HybridTerms", "hybrid_loss"]
