"""SocialFusion: one vision-language model for five tasks of seeing people together (after arXiv 2512.01148)."""

from bgs.socialfusion.data import Batch, Example, collate, read_manifest
from bgs.socialfusion.model import SocialFusion
from bgs.socialfusion.tasks import TASKS, Task

__all__ = ["TASKS", "Batch", "Example", "SocialFusion", "Task", "collate", "read_manifest"]
