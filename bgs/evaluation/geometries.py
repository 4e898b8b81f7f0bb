"""Dissimilarities of all pairs of items, from whatever describes the items: embeddings, ratings, judgments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform


def rating_distances(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distances of items in the space of their ratings, each scaled to unit standard deviation.

    Args:
        values: (N, T) ratings; NaN where an item has none.

    Returns:
        (N, N) float64, 0 on the diagonal; NaN in the rows and columns of items that lack a rating.
    """
    rated = np.isfinite(values).all(axis=1)
    spread = values[rated].std(axis=0)
    scaled = values / np.where(spread > 0, spread, 1.0)
    found: NDArray[np.float64] = squareform(pdist(scaled))
    found[~rated] = found[:, ~rated] = np.nan
    return found
