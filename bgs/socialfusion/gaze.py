"""Gaze following as a distribution over the image: the head, its targets and GazeFollow's measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

MAP = 64
"""Cells a side of the distribution, as is usual for GazeFollow."""

SIGMA = 3.0
"""Standard deviation of the Gaussian around an annotated point, cells of the map."""


class GazeHead(nn.Module):
    """A number for each patch, upsampled to a distribution over the image.

    Args:
        width: of the language model's hidden states.
        grid: patches a side.
    """

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.linear = nn.Linear(width, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Return log-probabilities.

        Args:
            states: (B, grid * grid, width), the final states at the image's positions.

        Returns:
            (B, MAP, MAP) float32, whose exponentials sum to 1.
        """
        patches = self.linear(states).float().view(-1, 1, self.grid, self.grid)
        scores = nn.functional.interpolate(patches, size=(MAP, MAP), mode="bilinear", align_corners=False)
        return scores.flatten(1).log_softmax(1).view(-1, MAP, MAP)


def heat_maps(points: Sequence[tuple[float, float]], size: int = MAP, sigma: float = SIGMA) -> Tensor:
    """Return the target of one example: the sum of a Gaussian around each annotated point, scaled to sum 1.

    Args:
        points: (x, y) in [0, 1]; none gives zeros.
        size: cells a side; the centre of cell k is at (k + 0.5) / size.
        sigma: standard deviation, cells.

    Returns:
        (size, size) float32, rows are y.
    """
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    total = torch.zeros(size, size, dtype=torch.float64)
    for x, y in points:
        across, down = (torch.exp(-0.5 * ((centres - at) * size / sigma) ** 2) for at in (x, y))
        total += down[:, None] * across[None, :]
    return (total / total.sum() if points else total).float()


def gaze_loss(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy -sum target log p of each example, (B,)."""
    return -(targets * log_probabilities).flatten(1).sum(1)


def gaze_measures(probabilities: NDArray[np.floating], points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return GazeFollow's three measures of one example (Recasens et al., 2015).

    Args:
        probabilities: (M, M), rows are y.
        points: annotated (x, y) in [0, 1].

    Returns:
        `auc`: area under the ROC curve of the map, cells that hold an annotated point being the positives (ties count
        half); `distance`: from the centre of the most probable cell to the mean of the points; `min_distance`: to the
        nearest of them. Distances in units of the image's sides.
    """
    size = len(probabilities)
    truth = np.zeros((size, size), dtype=bool)
    annotated = np.asarray(points, dtype=np.float64)
    cells = np.minimum((annotated * size).astype(int), size - 1)
    truth[cells[:, 1], cells[:, 0]] = True
    y, x = np.unravel_index(int(np.argmax(probabilities)), probabilities.shape)
    found = (np.array([x, y]) + 0.5) / size
    return {
        "auc": float(roc_auc_score(truth.ravel(), np.asarray(probabilities).ravel())),
        "distance": float(np.linalg.norm(found - annotated.mean(axis=0))),
        "min_distance": float(np.linalg.norm(found - annotated, axis=1).min()),
    }
