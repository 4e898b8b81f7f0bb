"""How well odd-one-out judgments can be predicted at all, from the triplets that were judged more than once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bgs.data.judgments import Judgments


@dataclass(frozen=True)
class Ceiling:
    """Bounds of three-way odd-one-out accuracy.

    Args:
        lower: accuracy of one participant's answer as a prediction of another's; NaN where no triplet was judged by
            two.
        upper: accuracy of the best single answer to each triplet; NaN where none was judged more than once.
        triplets: distinct triplets judged more than once, on which the bounds rest.
    """

    lower: float
    upper: float
    triplets: int


def odd_one_out_ceiling(judgments: Judgments) -> Ceiling:
    """The bounds that disagreement between people puts on odd-one-out accuracy.

    For a distinct triplet t let n_t be its judgments and c_ta how many of them chose item a; let m_tp be its judgments
    by participant p and c_tpa those of them that chose a. Over the triplets with n_t > 1, each with the same weight:

        upper = mean_t  max_a c_ta / n_t
        lower = mean_t  (sum_a c_ta^2 - sum_pa c_tpa^2) / (n_t^2 - sum_p m_tp^2)

    `upper` is the modal agreement: what an observer scores who gives the most frequent answer. The mode is taken from
    the judgments that it is scored on, so that `upper` is optimistic where n_t is small: two judgments of pure chance
    already give 2/3. `lower` is the share of agreeing pairs among all pairs of judgments by different participants,
    each left out in turn and predicted by the others; triplets that only one participant judged have no such pair and
    do not enter. Where the source names no participants, every judgment counts as one of its own.

    Args:
        judgments: judgments of which some are about the same triplet.

    Returns:
        The ceiling; both bounds NaN where no triplet was judged more than once.
    """
    repeats = judgments.repeats
    total = repeats.counts.sum(axis=1)
    repeated = total > 1
    upper = repeats.counts.max(axis=1, initial=0)[repeated] / total[repeated]

    judged = repeated[repeats.row]
    row, odd = repeats.row[judged], judgments.triplets[judged, 2]
    chosen = (repeats.triplets[row] == odd[:, None]).argmax(axis=1)
    who = np.arange(len(row)) if judgments.participants is None else judgments.participants[judged]
    people = int(who.max(initial=0)) + 1
    by_person, person_row = np.unique(row * people + who, return_inverse=True)
    person_counts = np.bincount(person_row * 3 + chosen, minlength=3 * len(by_person)).reshape(-1, 3)

    def sum_over_people(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(by_person // people, weights=values, minlength=len(repeats)).astype(np.int64)

    agreeing = (repeats.counts**2).sum(axis=1) - sum_over_people((person_counts**2).sum(axis=1))
    pairs = total**2 - sum_over_people(person_counts.sum(axis=1) ** 2)
    judged_by_two = repeated & (pairs > 0)
    lower = agreeing[judged_by_two] / pairs[judged_by_two]
    return Ceiling(
        lower=float(lower.mean()) if len(lower) else float("nan"),
        upper=float(upper.mean()) if len(upper) else float("nan"),
        triplets=int(repeated.sum()),
    )
