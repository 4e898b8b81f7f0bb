"""The simulated experiment: who is shown what, what they choose, and the rows that the published tables hold of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bgs.data.judgments import Judgments
from bgs.data.synthetic.latents import Stream, stream
from bgs.data.synthetic.observers import Observers
from bgs.data.synthetic.settings import Settings
from bgs.data.synthetic.trials import assign, draw_mixed_triplets, draw_triplets

TRIALS_PER_TASK = 30  # at most, as published
HARD_SECONDS, EASY_SECONDS = 7.0, 3.0  # median response time where any choice is as good, and where one is certain
RESPONSE_SPREAD = 0.4  # standard deviation of log response time


@dataclass(frozen=True)
class Answers:
    """Trials that were run, ordered by participant and then by time.

    Args:
        triplets: (T, 3) int64 item rows in the order shown; a catch trial shows one item twice.
        choices: (T,) int64 item row of the odd one.
        participants: (T,) int64, ascending.
        seconds: (T,) float64 response times.
    """

    triplets: NDArray[np.int64]
    choices: NDArray[np.int64]
    participants: NDArray[np.int64]
    seconds: NDArray[np.float64]

    def select(self, rows: NDArray[np.int64]) -> Answers:
        """Return the answers at some rows (integers, or a mask)."""
        return Answers(self.triplets[rows], self.choices[rows], self.participants[rows], self.seconds[rows])

    def judgments(self, items: tuple[str, ...]) -> Judgments:
        """Return the answers as judgments, catch trials left out."""
        ascending = np.sort(self.triplets, axis=1)
        distinct = (np.diff(ascending, axis=1) > 0).all(axis=1)
        triplets, choices = self.triplets[distinct], self.choices[distinct]
        others = triplets[triplets != choices[:, None]].reshape(-1, 2)
        return Judgments(items=items, triplets=np.column_stack([others, choices]))

    def rows(self) -> Iterator[tuple[object, ...]]:
        """Yield a row of the published tables per trial, in the order of `layout.JUDGMENT_COLUMNS`."""
        trial, previous = -1, -1
        columns = (self.participants, self.triplets, self.choices, self.seconds)
        for number, (person, shown, choice, seconds) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            trial = trial + 1 if person == previous else 0
            previous = person
            task, place = divmod(trial, TRIALS_PER_TASK)
            yield (
                number,
                f"observer-{person:03d}",
                f"set{task + 1}",
                place,
                *shown,
                choice,
                round(seconds, 3),
                False,
                f"p{person + 1}",
                float(person),
            )


def run_experiment(settings: Settings, splits: dict[str, NDArray[np.int64]], observers: Observers) -> Answers:
    """Show triplets within train, within test and across both to a panel, and record its answers.

    Args:
        settings: How many judgments of each kind, and the share of catch trials.
        splits: Item rows of "train" and "test".
        observers: The panel.

    Returns:
        All answers.
    """
    design = stream(settings.seed, Stream.TRIALS)
    shown = [
        draw_triplets(splits["train"], settings.judgments, design),
        draw_triplets(splits["test"], settings.test_judgments, design),
        draw_mixed_triplets(splits["train"], splits["test"], settings.mixed_judgments, design),
    ]
    trials = assign(np.concatenate(shown), settings.participants, design)
    chance = stream(settings.seed, Stream.CHOICES)
    choices = observers.choose(trials.triplets, trials.participants, chance)
    certainty = observers.probabilities(trials.triplets, trials.participants).max(axis=1)
    slowness = np.interp(certainty, [1 / 3, 1], np.log([HARD_SECONDS, EASY_SECONDS]))
    seconds = np.exp(chance.normal(slowness, RESPONSE_SPREAD))
    answers = Answers(trials.triplets, choices, trials.participants, seconds)
    answers = _with_catch_trials(answers, settings.catch_trials, chance)
    return answers.select(np.argsort(answers.participants, kind="stable"))


def _with_catch_trials(answers: Answers, share: float, rng: np.random.Generator) -> Answers:
    """Put in trials that show one item twice, whose odd one is plain, at random places among the others."""
    count = round(share * len(answers.choices))
    if count == 0:
        return answers
    source = answers.select(rng.choice(len(answers.choices), count))
    shown = source.triplets[:, [0, 0, 1]]
    total = len(answers.choices) + count
    return Answers(
        np.concatenate([answers.triplets, rng.permuted(shown, axis=1)]),
        np.concatenate([answers.choices, shown[:, 2]]),
        np.concatenate([answers.participants, source.participants]),
        np.concatenate([answers.seconds, np.exp(rng.normal(np.log(EASY_SECONDS), RESPONSE_SPREAD, count))]),
    ).select(rng.permutation(total))
