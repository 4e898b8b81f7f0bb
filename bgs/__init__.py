"""Behavioural geometric supervision: teaching video models to see social scenes as people do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bgs.models import Embedder

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(folder: str | os.PathLike[str]) -> Embedder:
    """Load a fine-tuned embedder: in eval mode, frozen, on the CPU, with the embeddings it had when it was saved.

    Args:
        folder: a run's folder, or that of one embedder inside it, such as `runs/x/fold-0/model`.

    Returns:
        The embedder; `embedder.preprocess` says how a video file becomes its input.

    Raises:
        FileNotFoundError: the folder holds no embedder, or a file of it or its checkpoint is not there.
        ValueError: a file is not what it was when it was saved, or weights are missing or left over.
    """
    from pathlib import Path

    from bgs.models import Embedder

    folder = Path(folder)
    inside = folder / "model"
    return Embedder.load(inside if (inside / "embedder.json").is_file() else folder)
