"""How a fit turns items into embeddings: through the whole embedder, or, where the encoder is frozen and clips are not
varied, from features that were computed once.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from bgs.config import TrainConfig
from bgs.data.augment import augment
from bgs.models.embedder import Embedder, Stimuli

EVAL_CLIPS = 16
"""Clips in one forward pass without gradients."""


class Through:
    """Embeds stimuli through the whole embedder.

    Args:
        embedder: what is trained.
        stimuli: the items, by row.
        config: its `augment` varies training clips.
    """

    def __init__(self, embedder: Embedder, stimuli: Stimuli, config: TrainConfig) -> None:
        self._embedder, self._stimuli = embedder, stimuli
        self._augment = None if config.backbone == "text" else config.augment

    def __call__(self, rows: NDArray[np.int64], training: bool) -> Tensor:
        """See `bgs.training.fit.Embed`."""
        if not training:
            parts = [rows[start : start + EVAL_CLIPS] for start in range(0, len(rows), EVAL_CLIPS)]
            return torch.cat([self._embedder(self._stimuli.batch(part)) for part in parts])
        batch = self._stimuli.batch(rows)
        if self._augment is not None:
            # From torch's own state, which the fit seeds every epoch.
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            batch = augment(batch, self._augment, generator)
        found: Tensor = self._embedder(batch)
        return found


class Kept:
    """Embeds items from the features of a frozen encoder: only the head is computed.

    Args:
        embedder: its head is trained.
        features: (N, backbone.dim), on the head's device.
    """

    def __init__(self, embedder: Embedder, features: Tensor) -> None:
        self._embedder, self._features = embedder, features

    def __call__(self, rows: NDArray[np.int64], training: bool) -> Tensor:
        """See `bgs.training.fit.Embed`."""
        return self._embedder.project(self._features[torch.from_numpy(rows).to(self._features.device)])


@torch.no_grad()
def frozen_features(embedder: Embedder, stimuli: Stimuli, rows: NDArray[np.int64], progress: bool = True) -> Tensor:
    """Compute the encoder's embeddings of some items, in eval mode.

    Args:
        embedder: only its backbone and its pooling are used.
        stimuli: the items.
        rows: the items wanted; other rows of the result are NaN.
        progress: whether to show a progress bar.

    Returns:
        (N, backbone.dim) float32 on the backbone's device.
    """
    backbone = embedder.backbone.eval()
    found = torch.full((len(stimuli), backbone.dim), torch.nan, device=backbone.device)
    starts = range(0, len(rows), EVAL_CLIPS)
    for start in tqdm(starts, desc="embedding", unit="batch", leave=False, disable=None if progress else True):
        part = rows[start : start + EVAL_CLIPS]
        found[torch.from_numpy(part).to(found.device)] = embedder.features(stimuli.batch(part)).float()
    return found
