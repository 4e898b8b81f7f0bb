"""The fused ops inside models of transformers and peft: put in, and taken out again. Neither library is imported here:
a model of theirs can only be at hand where they are imported already.
"""

from bgs_kernels.patch.api import accelerate, restore
from bgs_kernels.patch.families import FallbackWarning, Fused, register_family
from bgs_kernels.patch.projections import project
from bgs_kernels.patch.report import Report
from bgs_kernels.patch.self_attention import FusedSelfAttention

__all__ = [
    "FallbackWarning",
    "Fused",
    "FusedSelfAttention",
    "Report",
    "accelerate",
    "project",
    "register_family",
    "restore",
]
