"""Whether tasks help or harm each other: a model trained on all of them against models trained on one each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bgs.evaluation.bootstrap import interval, resample_items
from bgs.socialfusion.predict import compare_key
from bgs.socialfusion.tasks import GAZE, TASKS

RESAMPLES = 1000


@dataclass(frozen=True)
class Transfer:
    """Joint against single-task training on one task's test examples.

    Attributes:
        task: its name.
        measure: `accuracy`, or `min_distance` (an error).
        joint: of the model that was trained on several tasks.
        single: of the model that was trained on this one.
        gain: how much better the joint one is: joint - single, of an error single - joint.
        ci95: paired bootstrap interval of the gain, over test examples. It tells nothing of how the two trainings would
            come out with other seeds.
        direction: `positive` or `negative` where the interval is on one side of zero, else `unclear`.
        n: test examples.
    """

    task: str
    measure: str
    joint: float
    single: float
    gain: float
    ci95: tuple[float, float] | None
    direction: Literal["positive", "negative", "unclear"]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return vars(self) | {"ci95": None if self.ci95 is None else list(self.ci95)}


def read_predictions(run: str | Path) -> list[dict[str, Any]]:
    """Read a finished run's answers to its test examples.

    Raises:
        FileNotFoundError: the run has none.
    """
    file = Path(run) / "predictions.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a finished run with test examples")
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["predictions"]
    return found


def transfer(
    joint: Sequence[Mapping[str, Any]],
    singles: Sequence[Sequence[Mapping[str, Any]]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Transfer]:
    """Compare a joint model's answers with those of single-task models, example by example.

    Args:
        joint: answers of the model that was trained on several tasks.
        singles: for each single-task model its answers to the same test examples of its task.
        resamples: bootstrap draws of examples.
        seed: of the draws.

    Returns:
        One for each single-task model, in order of the tasks.

    Raises:
        ValueError: a single model answered several tasks, or other examples than the joint one.
    """
    found = []
    for number, answers in enumerate(singles):
        tasks = {record["task"] for record in answers}
        if len(tasks) != 1:
            answered = ", ".join(sorted(tasks)) or "nothing"
            raise ValueError(f"singles[{number}]: answers to {answered}; expected one task")
        (task,) = tasks
        key = compare_key(task)
        theirs, ours = (_values(part, task, key) for part in (answers, joint))
        if [name for name, _ in theirs] != [name for name, _ in ours]:
            raise ValueError(f"singles[{number}]: {task}: not the test examples that the joint model answered")
        one, other = (np.array([value for _, value in part], dtype=np.float64) for part in (ours, theirs))
        better = other - one if task == GAZE else one - other
        draws = resample_items(len(better), resamples, seed)
        ci95 = interval(draws @ better / len(better))
        measure = key if task == GAZE else "accuracy"
        found.append(
            Transfer(
                task,
                measure,
                float(one.mean()),
                float(other.mean()),
                float(better.mean()),
                ci95,
                _direction(ci95),
                len(better),
            )
        )
    return sorted(found, key=lambda item: list(TASKS).index(item.task))


def _values(records: Sequence[Mapping[str, Any]], task: str, key: str) -> list[tuple[str, float]]:
    own = [record for record in records if record["task"] == task]
    return [(f"{Path(record['image']).name} {record.get('label')}", float(record[key])) for record in own]


def _direction(ci95: tuple[float, float] | None) -> Literal["positive", "negative", "unclear"]:
    if ci95 is None or ci95[0] <= 0 <= ci95[1]:
        return "unclear"
    return "positive" if ci95[0] > 0 else "negative"
