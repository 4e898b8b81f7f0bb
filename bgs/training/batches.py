"""Which clips a step embeds. A step takes distinct clips and uses every judgment among them, so that an epoch embeds
each clip once however many judgments it appears in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_CLIPS = 3
"""A judgment needs three clips."""


def epoch_batches(rows: NDArray[np.int64], batch_clips: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Divide clips at random into batches of nearly equal size, each clip in one batch.

    Args:
        rows: item rows of the training clips.
        batch_clips: clips in a batch, at most, and at least 3.
        seed: with `epoch`, the seed of the order: an epoch's batches do not depend on the epochs before it.
        epoch: number of the epoch, from 0.

    Returns:
        The batches. They are as few as `batch_clips` allows, as long as each keeps three clips.

    Raises:
        ValueError: fewer than three clips in all, or in a batch.
    """
    if batch_clips < MIN_CLIPS:
        raise ValueError(f"batch_clips: {batch_clips}; a judgment needs {MIN_CLIPS}")
    if len(rows) < MIN_CLIPS:
        raise ValueError(f"rows: {len(rows)} training clips; a judgment needs {MIN_CLIPS}")
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)
    number = min(-(-len(rows) // batch_clips), len(rows) // MIN_CLIPS)
    return np.array_split(order, number)
