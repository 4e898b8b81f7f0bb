"""How far halves of the participants agree on how dissimilar items are, which bounds any model's RSA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bgs.data.judgments import Judgments
from bgs.evaluation.bootstrap import INTERVAL
from bgs.evaluation.rsa import correlate

SPLITS = 100
"""Random divisions of the participants."""

LEAST_PAIRS = 10
"""Fewer pairs than this seen by both halves give a correlation that says nothing."""

HalvesMethod = Literal["pearson", "spearman"]


@dataclass(frozen=True)
class Reliability:
    """Split-half reliability of human dissimilarities; see `split_half`.

    Attributes:
        value: mean over splits of 2r / (1 + r); None where it is undefined, for `reason`.
        interval: the middle 95 % of the splits; how much it matters who is in which half, and no confidence interval.
        half: mean over splits of r, the correlation of the halves.
        ceiling: square root of `value`: the expected correlation of the dissimilarities with a perfect model of what
            the participants have in common.
        pairs: mean number of pairs that both halves saw.
        participants: who judged at least once.
        splits: splits in which r is defined.
        method: of the correlation.
        reason: why there is no value, or no ceiling; None where both are defined.
        values: 2r / (1 + r) of each of the splits.
    """

    value: float | None
    interval: tuple[float, float] | None
    half: float | None
    ceiling: float | None
    pairs: float
    participants: int
    splits: int
    method: HalvesMethod
    reason: str | None = None
    values: tuple[float, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields, without those of single splits."""
        found = vars(self) | {"interval": list(self.interval) if self.interval else None}
        del found["values"]
        return found


def split_half(
    judgments: Judgments, *, splits: int = SPLITS, method: HalvesMethod = "pearson", seed: int = 0
) -> Reliability:
    """Estimate the reliability of the behavioural dissimilarities by dividing the participants.

    In each split the participants are divided at random into halves of equal number, d = 1 - together / shown is
    estimated from each half alone, and r is the correlation over the pairs that both saw. By Spearman and Brown
    (1910) all participants together have reliability

        R = 2 r / (1 + r),

    averaged over the splits. R is a share of variance: it bounds the R^2, or the squared correlation, of a model with
    the dissimilarities; the bound of r itself is sqrt(R). It holds for what participants have in common, and for the
    pairs that both halves saw: pairs judged once or by one person are left out, and are less reliable than R says.
    For `spearman`, ranks in place of values, the formula is an approximation.

    Args:
        judgments: with participants.
        splits: random divisions.
        method: `pearson` or `spearman`.
        seed: of the divisions.

    Returns:
        The reliability. Without participants, with fewer than two, where halves share fewer than `LEAST_PAIRS` pairs or
        are constant, value and ceiling are None; where the mean r is negative, the ceiling is None: then either there
        is nothing to explain or there is too little data to see it. The reason says which.

    Raises:
        ValueError: no split is asked for.
    """
    if splits < 1:
        raise ValueError(f"splits: {splits}; expected at least 1")

    def undefined(reason: str, people: int = 0, pairs: float = 0.0) -> Reliability:
        return Reliability(None, None, None, None, pairs, people, 0, method, reason)

    if judgments.participants is None:
        return undefined("the data names no participants")
    names, who = np.unique(judgments.participants, return_inverse=True)
    people = len(names)
    if people < 2:
        return undefined(f"{people} participant{'s' * (people != 1)}; expected at least 2", people)
    shown, together = _pairs_of(judgments)
    size = int(shown.max()) + 1
    generator = np.random.Generator(np.random.PCG64(seed))
    found, common = np.full(splits, np.nan), np.zeros(splits)
    for number in range(splits):
        first = (generator.permutation(people) < people // 2)[who]
        halves = []
        for mask in (first, ~first):
            counts = np.bincount(shown[mask].ravel(), minlength=size)
            with np.errstate(invalid="ignore"):
                halves.append(1 - np.bincount(together[mask], minlength=size) / counts)
        both = np.isfinite(halves[0]) & np.isfinite(halves[1])
        common[number] = both.sum()
        if both.sum() >= LEAST_PAIRS:
            found[number] = correlate(halves[0][both], halves[1][both], method=method)[0]
    # At r = -1 the formula has a pole.
    defined = found[np.isfinite(found) & (found > -1)]
    pairs = float(common.mean())
    if len(defined) * 2 < splits:
        few = f"halves share {pairs:.0f} pairs; expected at least {LEAST_PAIRS}"
        return undefined(few if pairs < LEAST_PAIRS else "a half does not vary over the pairs", people, pairs)
    corrected = 2 * defined / (1 + defined)
    low, high = np.percentile(corrected, INTERVAL)
    value, half = float(corrected.mean()), float(defined.mean())
    negative = value < 0
    return Reliability(
        value=value,
        interval=(float(low), float(high)),
        half=half,
        ceiling=None if negative else float(np.sqrt(value)),
        pairs=pairs,
        participants=people,
        splits=len(defined),
        method=method,
        reason=f"halves do not agree (r = {half:.3f})" if negative else None,
        values=tuple(corrected.tolist()),
    )


def _pairs_of(judgments: Judgments) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the pairs of each judgment: (T, 3) those shown and (T,) the one left together, from 0 without gaps."""
    triplets = judgments.triplets
    ends = np.sort(triplets[:, [[0, 1], [0, 2], [1, 2]]], axis=2)
    keys = ends[..., 0] * len(judgments.items) + ends[..., 1]
    _, number = np.unique(keys.ravel(), return_inverse=True)
    shown = number.reshape(keys.shape)
    return shown, shown[:, 0]
