"""Whether autocast is on for a kind of device, and how it is kept away: what every op asks, eager or while it is being
compiled, on kinds of device that have no autocast as well.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

KINDS = frozenset(
    kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "xla", "mtia", "ipu") if torch.amp.is_autocast_available(kind)
)
"""Asked once: not every version of ``torch.compile`` can trace the question."""


def is_autocast_on(kind: str) -> bool:
    """Say whether autocast is on.

    Args:
        kind: of device, as in ``tensor.device.type``.
    """
    return kind in KINDS and torch.is_autocast_enabled(kind)


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """Keep autocast away from what is computed within, if it is on."""
    return torch.autocast(kind, enabled=False) if is_autocast_on(kind) else contextlib.nullcontext()
