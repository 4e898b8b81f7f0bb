"""Resampling of items, the unit over which the results of an evaluation should generalise.

Judgments and pairs share items, so that resampling them one by one would give intervals that are far too narrow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INTERVAL = (2.5, 97.5)
"""Percentiles of the 95 % interval."""


def resample_items(items: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """Draw items with replacement.

    Args:
        items: number of items n.
        resamples: number of draws R.
        seed: of NumPy's PCG64.

    Returns:
        (R, n): how often each item was drawn; a row sums to n.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.multinomial(items, np.full(items, 1 / items), size=resamples).astype(np.float64)


def interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of resampled values, None where too few of them are defined.

    A resample in which a quantity is undefined (no judgment left, no variance) is NaN and left out, as long as that
    befalls fewer than half of them.
    """
    defined = values[np.isfinite(values)]
    if len(defined) * 2 < len(values) or not len(defined):
        return None
    low, high = np.percentile(defined, INTERVAL)
    return float(low), float(high)
