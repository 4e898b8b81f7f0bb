"""Evaluation of a finished run, of a frozen backbone, or of embeddings in a file, on judgments from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from bgs.config import FormatConfig
from bgs.data.judgments import Dataset
from bgs.evaluation.evaluate import METHODS, RESAMPLES, Evaluation, Held, evaluate
from bgs.evaluation.rsa import Method
from bgs.evaluation.sources import RunSource, Source, Task
from bgs.inputs import known_ceiling, read_dataset, splits_of

Split = Literal["val", "test", "all"]


def evaluate_run(
    run: Path,
    data: str | None = None,
    *,
    split: Split = "test",
    clips: str | None = None,
    cache: str | None = None,
    format: FormatConfig | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a finished run's embedder.

    Args:
        run: folder of the run.
        data: judgments; None for those of the run.
        split: `val` or `test` as the run divided its clips, found by name in the data; under cross-validation `test`
            is each fold's held-out clips under the fold's own model, pooled. `all`: every clip of the data.
        clips: folder of the video files; None for the run's, or `clips` in the data folder.
        cache: folder for decoded clips; None for the default one.
        format: how a table of judgments is read; what it leaves open, or None, is as in the run.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        FileNotFoundError: no run there, or its data or clips are not.
        ValueError: the run has no such split, or the data none of its clips.
    """
    source = RunSource(run)
    return evaluate_source(source, run_task(source, data, split, clips, cache, format), resamples=resamples, seed=seed)


def run_task(
    run: RunSource,
    data: str | None,
    split: Split,
    clips: str | None = None,
    cache: str | None = None,
    format: FormatConfig | None = None,
) -> Task:
    """Find what a run is evaluated on; arguments as for `evaluate_run`."""
    same_data = data is None or data == run.settings["data"]
    dataset = read_dataset(data or run.settings["data"], run.format(format or FormatConfig()))
    clips = clips if clips is not None else (run.settings["clips"] if same_data else None)
    return run.task(dataset, split, clips, cache)


def data_task(
    data: str,
    split: Split,
    clips: str | None = None,
    cache: str | None = None,
    format: FormatConfig | None = None,
    seed: int = 0,
) -> Task:
    """Find what is evaluated on where no run says it.

    Args:
        data: judgments.
        split: a split that the data defines, or that `seed` carves out of its clips; `all` for every clip.
        clips: as for `evaluate_run`.
        cache: as for `evaluate_run`.
        format: how a table of judgments is read.
        seed: of what is carved.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: the data cannot be used.
    """
    dataset = read_dataset(data, format or FormatConfig())
    rows = np.arange(len(dataset.items))
    if split != "all":
        rows = splits_of(dataset, val_share=0.2, test_share=0.2, seed=seed)[split]
    return Task(dataset, (rows,), clips, cache)


def evaluate_source(
    source: Source,
    task: Task,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    methods: Sequence[Method] = METHODS,
) -> Evaluation:
    """Evaluate embeddings from anywhere on the judged items of a task.

    Args:
        source: gives the embeddings.
        task: what is evaluated on.
        resamples: bootstrap draws.
        seed: of the draws.
        methods: correlations to compute.
    """
    source.check(task)
    held = []
    for number in range(len(task.sets)):
        rows = task.judged(number)
        embedded = source.embed(task, number, rows)
        held.append(Held(embedded.vectors, task.dataset.judgments.among(rows, reindex=True)))
    ceiling = pooled_ceiling(task.dataset, held)
    return evaluate(held, resamples=resamples, seed=seed, known_ceiling=ceiling, methods=methods)


def pooled_ceiling(dataset: Dataset, held: Sequence[Held]) -> dict[str, dict[str, float]]:
    """Return the exact ceiling of simulated observers over the judgments of all sets; empty for people's judgments."""
    found = [known_ceiling(dataset, part.judgments) for part in held]
    weights = [len(part.judgments) for part in held]
    return {
        name: {"upper": float(np.average([ceiling[name]["upper"] for ceiling in found], weights=weights))}
        for name in found[0]
    }
