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
        value: 2r / (1 + r), of the pairs that both halves saw; None where it is undefined, for `reason`.
        interval: the middle 95 % of that of the splits; how much it matters who is in which half, and no confidence
            interval.
        half: mean over splits of r, the correlation of the halves.
        all_pairs: reliability of all observed pairs, at most 1; those that few people judged lower it.
        ceiling: square root of `all_pairs`: the expected correlation of the dissimilarities with a perfect model of
            what the participants have in common.
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
    all_pairs: float | None
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
    estimated from each half alone, and r is the correlation over the pairs that both saw. With r averaged over the
    splits, all participants together have, by Spearman and Brown (1910), over the pairs that both halves saw,

        R = 2 r / (1 + r).

    Pairs that were judged once, or by one half, are noisier than those. What the halves have in common is the variance
    of what there is to explain, so that over all observed pairs, s_1 and s_2 the standard deviations of the halves,

        R_all = mean_splits(r s_1 s_2) / var(d),

    the covariance of the halves by the variance of the estimates from all. R is a share of variance: it bounds the R^2,
    or the squared correlation, of a model with the dissimilarities; the bound of r itself is its square root. Both
    count as reliable what depends on the third items that a pair was shown with, where halves judged the same
    triplets, and no distance of two items explains that: the bounds are upper ones. For `spearman`, ranks in place of
    values, both formulae are approximations.

    Args:
        judgments: with participants.
        splits: random divisions.
        method: `pearson` or `spearman`.
        seed: of the divisions.

    Returns:
        The reliability. Without participants, with fewer than two, where halves share fewer than `LEAST_PAIRS` pairs or
        are constant, there is no value and no ceiling; where the mean r is negative there is no ceiling: then either
        there is nothing to explain or there is too little data to see it. The reason says which.

    Raises:
        ValueError: no split is asked for.
    """
    if splits < 1:
        raise ValueError(f"splits: {splits}; expected at least 1")

    def undefined(reason: str, people: int = 0, pairs: float = 0.0) -> Reliability:
        return Reliability(None, None, None, None, None, pairs, people, 0, method, reason)

    if judgments.participants is None:
        return undefined("the data names no participants")
    names, who = np.unique(judgments.participants, return_inverse=True)
    people = len(names)
    if people < 2:
        return undefined(f"{people} participant{'s' * (people != 1)}; expected at least 2", people)
    shown, together = _pairs_of(judgments)
    size = int(shown.max()) + 1
    generator = np.random.Generator(np.random.PCG64(seed))
    found, shared, common = np.full(splits, np.nan), np.zeros(splits), np.zeros(splits)
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
            one, other = halves[0][both], halves[1][both]
            found[number] = correlate(one, other, method=method)[0]
            shared[number] = found[number] * one.std() * other.std()
    defined = np.isfinite(found)
    pairs = float(common.mean())
    if defined.sum() * 2 < splits:
        few = f"halves share {pairs:.0f} pairs; expected at least {LEAST_PAIRS}"
        return undefined(few if pairs < LEAST_PAIRS else "a half does not vary over the pairs", people, pairs)
    half = float(found[defined].mean())
    whole = 1 - np.bincount(together, minlength=size) / np.bincount(shown.ravel(), minlength=size)
    all_pairs = min(1.0, float(shared[defined].mean() / whole.var()))
    # At r = -1 the formula has a pole.
    corrected = 2 * found[defined] / (1 + np.maximum(found[defined], -0.99))
    low, high = np.percentile(corrected, INTERVAL)
    negative = half < 0
    return Reliability(
        value=2 * half / (1 + max(half, -0.99)),
        interval=(float(low), float(high)),
        half=half,
        all_pairs=all_pairs,
        ceiling=None if negative else float(np.sqrt(max(all_pairs, 0.0))),
        pairs=pairs,
        participants=people,
        splits=int(defined.sum()),
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
