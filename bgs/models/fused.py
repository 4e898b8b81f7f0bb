"""Whether an encoder runs by fused kernels; what they change is speed and memory, never what is saved."""

from __future__ import annotations

import logging

from bgs.models.backbone import Backbone
from bgs_kernels import accelerate
from bgs_kernels.patch import Fused

logger = logging.getLogger(__name__)


def run_fused(backbone: Backbone, wanted: bool | None = None) -> None:
    """Let fused kernels run what they can of a backbone, in place; see `bgs_kernels.accelerate`.

    Args:
        backbone: on the device that it will run on, with its adapters in place.
        wanted: None for on a GPU, as far as there is something that they can run.

    Raises:
        ValueError: it is wanted, and nothing of the backbone can be run by them.
    """
    if wanted is False or (wanted is None and backbone.device.type != "cuda"):
        return
    try:
        report = accelerate(backbone)
    except ValueError as error:
        if wanted:
            raise
        logger.info("%s: not accelerated: %s", backbone.name, error)
        return
    logger.info("%s: %s", backbone.name, report)


def is_fused(backbone: Backbone) -> bool:
    """Tell whether fused kernels run any part of a backbone."""
    return any(isinstance(module, Fused) for module in backbone.modules())
