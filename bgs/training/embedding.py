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
from bgs.processes import Processes

EVAL_CLIPS = 16
"""Clips in one forward pass without gradients."""


class Through:
    """Embeds stimuli through the whole embedder.

    Args:
        embedder: what is trained.
        stimuli: the items, by row.
        config: its `augment` varies training clips.
        processes: embed what is not trained on together; every one of them is called with the same rows then.
    """

    def __init__(
        self, embedder: Embedder, stimuli: Stimuli, config: TrainConfig, processes: Processes | None = None
    ) -> None:
        self._embedder, self._stimuli = embedder, stimuli
        self._processes = processes or Processes()
        self._augment = None if config.backbone == "text" else config.augment

    def __call__(self, rows: NDArray[np.int64], training: bool) -> Tensor:
        """See `bgs.training.fit.Embed`."""
        if not training:
            shares = whole_passes(rows, self._processes)
            own = shares[self._processes.rank]
            parts = [own[start : start + EVAL_CLIPS] for start in range(0, len(own), EVAL_CLIPS)]
            found = [self._embedder(self._stimuli.batch(part)) for part in parts] or [self._nothing()]
            return self._processes.gather(torch.cat(found), [len(share) for share in shares])
        batch = self._stimuli.batch(rows)
        if self._augment is not None:
            # From torch's own state, which the fit seeds every epoch.
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            batch = augment(batch, self._augment, generator)
        varied: Tensor = self._embedder(batch)
        return varied

    def _nothing(self) -> Tensor:
        return torch.empty(0, self._embedder.dim, device=self._embedder.backbone.device)


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


def whole_passes(rows: NDArray[np.int64], processes: Processes) -> list[NDArray[np.int64]]:
    """Divide items among processes so that those that meet in a pass without gradients are the same however many
    processes there are, and with them every bit of what it gives."""
    if processes.alone:
        return [rows]
    shares = processes.shares(np.arange(0, len(rows), EVAL_CLIPS))
    return [rows[starts[0] : starts[-1] + EVAL_CLIPS] if len(starts) else rows[:0] for starts in shares]


@torch.no_grad()
def frozen_features(
    embedder: Embedder,
    stimuli: Stimuli,
    rows: NDArray[np.int64],
    progress: bool = True,
    processes: Processes | None = None,
) -> Tensor:
    """Compute the encoder's embeddings of some items, in eval mode.

    Args:
        embedder: only its backbone and its pooling are used.
        stimuli: the items.
        rows: the items wanted; other rows of the result are NaN.
        progress: whether to show a progress bar.
        processes: compute them together, each of which gets all of them.

    Returns:
        (N, backbone.dim) float32 on the backbone's device.
    """
    processes = processes or Processes()
    shares = whole_passes(rows, processes)
    own = shares[processes.rank]
    backbone = embedder.backbone.eval()
    found = torch.full((len(stimuli), backbone.dim), torch.nan, device=backbone.device)
    starts = range(0, len(own), EVAL_CLIPS)
    for start in tqdm(starts, desc="embedding", unit="batch", leave=False, disable=None if progress else True):
        part = own[start : start + EVAL_CLIPS]
        found[torch.from_numpy(part).to(found.device)] = embedder.features(stimuli.batch(part)).float()
    if not processes.alone:
        mine, everyone = (torch.from_numpy(part).to(found.device) for part in (own, rows))
        found[everyone] = processes.gather(found[mine], [len(share) for share in shares])
    return found
