"""Writes the tables of the published layout, `raw/utils` and `interim/similarity`, column for column."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bgs.data.geometry import pair_counts
from bgs.data.judgments import Judgments
from bgs.data.synthetic.captions import RATINGS
from bgs.data.synthetic.experiment import Answers
from bgs.data.synthetic.latents import LATENTS, Scenario

JUDGMENT_COLUMNS = (
    "triplet_id",
    "participation",
    "task",
    "trial",
    "stim1_name",
    "stim2_name",
    "stim3_name",
    "choice",
    "response_time",
    "catch_trial_flag",
    "token",
    "survey_code",
)
# Two scales were collected later: they stand last in annotations.csv and are not in the tables of each split.
EARLY_RATINGS, LATE_RATINGS = RATINGS[:9], RATINGS[9:]


@dataclass(frozen=True)
class Stimulus:
    """What the tables say of one clip: file name, scenario, captions, and ratings in 0..1 by the names of RATINGS."""

    name: str
    scenario: Scenario
    captions: tuple[str, ...]
    ratings: dict[str, float]


def write_stimuli(utils: Path, stimuli: Sequence[Stimulus], splits: dict[str, NDArray[np.int64]]) -> None:
    """Write what `raw/utils` says of the clips.

    Args:
        utils: The `raw/utils` folder.
        stimuli: The clips, by item row.
        splits: Item rows of "train" and "test".
    """
    split_of = {row: split for split, rows in splits.items() for row in rows.tolist()}
    _write(utils / "video_mapping.csv", ("index", "video_name"), ((row, s.name) for row, s in enumerate(stimuli)))
    _write(utils / "train.csv", ("video_name",), ((stimuli[row].name,) for row in splits["train"]))
    _write(utils / "test.csv", ("index", "video_name"), ((row, stimuli[row].name) for row in splits["test"]))
    captions = sorted((place, row) for row, s in enumerate(stimuli) for place in range(len(s.captions)))
    _write(
        utils / "captions.csv",
        ("video_name", "caption_index", "caption"),
        ((stimuli[row].name, place + 1, stimuli[row].captions[place]) for place, row in captions),
    )
    described = [(s.name, *_rated(s, EARLY_RATINGS), split_of[row], list(s.captions)) for row, s in enumerate(stimuli)]
    columns = ("video_name", *_columns(EARLY_RATINGS), "stimulus_set", "captions")
    _write(
        utils / "annotations.csv",
        (*columns, *_columns(LATE_RATINGS)),
        ((*description, *_rated(s, LATE_RATINGS)) for description, s in zip(described, stimuli, strict=True)),
    )
    for split, rows in splits.items():
        _write(utils / f"{split}_stimulus_data.csv", ("", *columns), ((row, *described[row]) for row in rows))
    _write(
        utils / "latents.csv",
        ("video_name", "interaction", *LATENTS),
        ((s.name, s.scenario.interaction, *s.scenario.latents.tolist()) for s in stimuli),
    )


def write_judgments(folder: Path, answers: Answers, splits: dict[str, NDArray[np.int64]]) -> dict[str, Answers]:
    """Write `{train,test,mixed}_triplets.csv`: a judgment is of a split when all its clips are, and mixed otherwise.

    Args:
        folder: The `interim/similarity` folder.
        answers: All answers.
        splits: Item rows of "train" and "test".

    Returns:
        The answers of each file written; none is written, or returned, without a row.
    """
    in_test = np.isin(answers.triplets, splits["test"]).sum(axis=1)
    table = list(answers.rows())
    parts = {}
    for split, member in (("train", in_test == 0), ("test", in_test == 3), ("mixed", (in_test > 0) & (in_test < 3))):
        rows = np.flatnonzero(member)
        if len(rows):
            _write(folder / f"{split}_triplets.csv", JUDGMENT_COLUMNS, (table[row] for row in rows))
            parts[split] = answers.select(rows)
    return parts


def write_matrices(folder: Path, split: str, judgments: Judgments, items: NDArray[np.int64]) -> None:
    """Write a split's pair counts over all items and its similarity matrix over its own, with the published formulas.

    A similarity is the share of a pair's showings that left it together: 0.0 where never shown, 1.0 on the diagonal.

    Args:
        folder: The `interim/similarity` folder.
        split: "train" or "test".
        judgments: The split's judgments, over all items.
        items: (n,) item rows of the split.
    """
    counts = pair_counts(judgments)
    shown = counts.shown.astype(np.float64)
    similarity = np.divide(counts.together, shown, out=np.zeros_like(shown), where=shown > 0)
    np.fill_diagonal(similarity, 1.0)
    _write(folder / f"count_df_{split}.csv", range(len(shown)), shown.tolist())
    _write(folder / f"sim_judg_{split}_rsm.csv", items.tolist(), similarity[np.ix_(items, items)].tolist())


def _columns(scales: Iterable[str]) -> list[str]:
    return [f"rating-{scale}" for scale in scales]


def _rated(stimulus: Stimulus, scales: Iterable[str]) -> list[float]:
    return [int(stimulus.ratings[scale]) if scale == "indoor" else stimulus.ratings[scale] for scale in scales]


def _write(path: Path, header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
