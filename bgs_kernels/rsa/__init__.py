"""The agreement of two geometries."""

from bgs_kernels.rsa.api import rsa_correlation

__all__ = ["rsa_correlation"]
