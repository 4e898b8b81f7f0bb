"""What validation chooses before the final fit: one of several candidate settings and a number of epochs, by
cross-validation over the training clips. No held-out clip takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from bgs.config import TrainConfig, with_overrides
from bgs.data.splits import folds
from bgs.training.fit import Fitted


class Interrupted(Exception):
    """Ctrl-C ended a fit whose result is only of use together with others'."""


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        overrides: the candidate; empty where there was none.
        epochs: epochs that were best for it.
        score: its mean validation score after those epochs.
        scores: best mean score of each candidate, in order.
    """

    overrides: dict[str, Any]
    epochs: int
    score: float
    scores: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return vars(self).copy()


def choose(
    config: TrainConfig,
    train: NDArray[np.int64],
    fit: Callable[[TrainConfig, NDArray[np.int64], NDArray[np.int64], str], Fitted],
    *,
    label: str = "choosing",
    progress: bool = True,
) -> Choice:
    """Choose a candidate and its number of epochs.

    Every candidate is fitted on each inner fold's training clips and validated on the rest after every epoch. The
    scores are averaged over the folds, and the candidate and epoch with the highest mean win; the earlier on a tie.

    Args:
        config: with `selection.inner_folds` of at least 2.
        train: rows of the training clips.
        fit: fits with (configuration, rows to train on, rows to validate on, label).
        label: of the progress bar.
        progress: whether to show one.

    Raises:
        Interrupted: Ctrl-C.
    """
    candidates: list[dict[str, Any]] = config.selection.candidates or [{}]
    inner = folds(train, config.selection.inner_folds, config.seed)
    best: Choice | None = None
    tops: list[float] = []
    bar = tqdm(
        total=len(candidates) * len(inner), desc=label, unit="fit", leave=False, disable=None if progress else True
    )
    with bar:
        for overrides in candidates:
            curves = []
            for rows, held_out in inner:
                fitted = fit(with_overrides(config, overrides), rows, held_out, label)
                if fitted.stopped == "interrupted":
                    raise Interrupted
                curves.append(fitted.scores)
                bar.update()
            length = min(map(len, curves))
            means = np.mean([curve[:length] for curve in curves], axis=0)
            epochs = int(np.nanargmax(means)) + 1
            tops.append(float(means[epochs - 1]))
            if best is None or tops[-1] > best.score:
                best = Choice(overrides, epochs, tops[-1], tops)
    assert best is not None
    return best
