"""Behavioural geometric supervision: teaching video models to see social scenes as people do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bgs.data.preprocess import Preprocess
    from bgs.models import Embedder

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    frames: int | None = None,
) -> tuple[Embedder, Preprocess | None]:
    """Load what embeds videos, or captions: a fine-tuned embedder, or a published model as it is.

    Args:
        source: a run's folder, an embedder's folder (such as `runs/x/fold-0/model`), a folder written by transformers'
            `save_pretrained`, or a hub id such as `facebook/vjepa2-vitl-fpc64-256`. The last two get no head.
        device: where to.
        dtype: of the weights, such as `bfloat16`; None leaves them as they are.
        frames: frames per clip; None takes what the model was trained with. A fine-tuned embedder takes no others.

    Returns:
        The embedder, in eval mode and frozen, and its preprocessing: `model.embed(["a.mp4", "b.mp4"])` gives
        embeddings, `preprocess("a.mp4")` the pixels that the model sees. For a model of captions the latter is None,
        and `embed` takes captions.

    Raises:
        FileNotFoundError: there is no such model, or a file of it is not there.
        ValueError: a file is not what it was when it was saved, weights are missing or left over, or the model is of a
            kind that is not known here.
    """
    from bgs.models.loading import load_embedder

    embedder = load_embedder(source, device=device, dtype=dtype, frames=frames)
    return embedder, embedder.preprocess
