"""The training objective on a batch of clips: which judgments and which part of the human geometry it sees, and the
loss that compares them with the embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bgs.config import LossConfig, Mode, TripletForm
from bgs.data.geometry import pair_counts
from bgs.data.judgments import Judgments
from bgs_kernels import HybridTerms, hybrid_loss

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed import ProcessGroup


class Objective:
    """Behavioural geometric supervision (Garcia & Isik, arXiv 2510.01502) of training clips.

    Args:
        judgments: over all items; only those given here are learned from, so pass those of the training clips.
        mode: `hybrid`, or one of its terms alone.
        triplet: form of the triplet term.
        config: weights and temperature.
        device: where the embeddings will be.
        group: the processes over which the embeddings of a batch are divided; None for one.
    """

    def __init__(
        self,
        judgments: Judgments,
        mode: Mode,
        triplet: TripletForm,
        config: LossConfig,
        device: torch.device,
        group: ProcessGroup | None = None,
    ) -> None:
        self._mode, self._triplet, self._config, self._group = mode, triplet, config, group
        self._triplets = judgments.triplets
        counts = pair_counts(judgments)
        shown = torch.from_numpy(counts.shown).to(device, torch.float32)
        together = torch.from_numpy(counts.together).to(device, torch.float32)
        self._target = torch.where(shown > 0, 1 - together / shown.clamp(min=1), torch.nan)
        self._shown = shown if config.pair_weights == "counts" else None
        self._place = np.full(len(judgments.items), -1)
        self._device = device

    def weights(self, epoch: int) -> tuple[float, float]:
        """Return alpha and beta in an epoch, counted from 0."""
        config = self._config
        if self._mode == "triplet":
            return config.alpha, 0.0
        if self._mode == "rsa":
            return 0.0, 1.0
        return config.alpha, min(max(config.beta_max, config.beta), config.beta + config.beta_growth * epoch)

    def batch_triplets(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the judgments all of whose items are in a batch, (T, 3), as positions in the batch."""
        self._place[rows] = np.arange(len(rows))
        found = self._place[self._triplets]
        found = found[(found >= 0).all(axis=1)]
        self._place[rows] = -1
        return found

    def __call__(self, embeddings: Tensor, rows: NDArray[np.int64], epoch: int) -> HybridTerms:
        """Compute the loss of a batch.

        Args:
            embeddings: (B, D), of distinct items; with a group this process's rows of them, which are sharded in the
                order of the ranks.
            rows: (B,) the item rows of all of them.
            epoch: number of the epoch, from 0, which decides beta.

        Returns:
            The loss and its terms.
        """
        alpha, beta = self.weights(epoch)
        triplets = torch.from_numpy(self.batch_triplets(rows)).to(self._device)
        chosen = torch.from_numpy(rows).to(self._device)
        return hybrid_loss(
            embeddings,
            triplets,
            self._target[chosen[:, None], chosen],
            weights=None if self._shown is None else self._shown[chosen[:, None], chosen],
            group=self._group,
            alpha=alpha,
            beta=beta,
            triplet=self._triplet,
            temperature=self._config.temperature,
            margin=self._config.margin,
            return_terms=True,
        )
