"""Evaluation of a finished run, or of a frozen backbone, on judgments from anywhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from bgs.config import FormatConfig
from bgs.data.judgments import Dataset
from bgs.evaluation.evaluate import RESAMPLES, Evaluation, Held, evaluate
from bgs.inputs import known_ceiling, read_dataset, splits_of, stimuli_of
from bgs.models import Embedder, HeadConfig, load_backbone
from bgs.models.fused import run_fused

logger = logging.getLogger(__name__)

Split = Literal["val", "test", "all"]
RUN_RECORD = "run.json"


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
    record_file = run / RUN_RECORD
    if not record_file.is_file():
        raise FileNotFoundError(f"{record_file}: no such file; expected the folder of a finished run")
    record: dict[str, Any] = json.loads(record_file.read_text(encoding="utf-8"))
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    same_data = data is None or data == settings["data"]
    given = {name: value for name, value in vars(format or FormatConfig()).items() if value is not None}
    dataset = read_dataset(data or settings["data"], FormatConfig(**settings["format"] | given))
    clips = clips if clips is not None else (settings["clips"] if same_data else None)
    sets: list[tuple[Path, NDArray[np.int64]]]
    if split == "all":
        trained = set(record["splits"]["train"]) & set(dataset.items)
        if trained:
            logger.warning("all: %d of %d clips were trained on", len(trained), len(dataset.items))
        sets = [(run / "model", np.arange(len(dataset.items)))]
    elif "folds" in record and split == "test":
        sets = [
            (run / f"fold-{number}/model", _rows(dataset, fold["held_out"], split, run))
            for number, fold in enumerate(record["folds"])
        ]
    else:
        if split not in record["splits"]:
            raise ValueError(f"split: {run} has no {split} clips; it has {', '.join(record['splits'])}")
        sets = [(run / "model", _rows(dataset, record["splits"][split], split, run))]
    held = []
    for folder, rows in sets:
        embedder = Embedder.load(folder)
        held.append(hold(embedder, dataset, rows, clips=clips, cache=cache, min_clip=settings["min_clip"]))
    return _finish(dataset, held, resamples, seed)


def evaluate_frozen(
    backbone: str,
    checkpoint: str | None,
    data: str,
    *,
    split: Split = "test",
    clips: str | None = None,
    cache: str | None = None,
    frames: int | None = None,
    format: FormatConfig | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a backbone as it is, its embeddings compared by cosine.

    Args:
        backbone: name of the backbone.
        checkpoint: hub id or folder; None for the published default.
        data: judgments.
        split: a split that the data defines, or that `seed` carves out of its clips; `all` for every clip.
        clips: as in `evaluate_run`.
        cache: as in `evaluate_run`.
        frames: frames per clip; None for the checkpoint's own.
        format: how a table of judgments is read.
        resamples: bootstrap draws.
        seed: of the draws and of what is carved.

    Raises:
        FileNotFoundError: data, clips or checkpoint are not there.
        ValueError: the data cannot be used.
    """
    dataset = read_dataset(data, format or FormatConfig())
    if split == "all":
        rows = np.arange(len(dataset.items))
    else:
        rows = splits_of(dataset, val_share=0.2, test_share=0.2, seed=seed)[split]
    found = load_backbone(backbone, checkpoint, seed=seed, frames=frames)
    embedder = Embedder(found, HeadConfig(kind="none"))
    return _finish(dataset, [hold(embedder, dataset, rows, clips=clips, cache=cache)], resamples, seed)


def hold(
    embedder: Embedder,
    dataset: Dataset,
    rows: NDArray[np.int64],
    *,
    clips: str | None = None,
    cache: str | None = None,
    min_clip: float | None = None,
) -> Held:
    """Embed those of some items that judgments are about.

    Args:
        embedder: on any device.
        dataset: where the items come from.
        rows: items; of those without a judgment nothing needs to be known, so they are left out.
        clips: as in `evaluate_run`.
        cache: as in `evaluate_run`.
        min_clip: a clip shorter than this is refused, seconds; None for what the embedder's preprocessing says.

    Raises:
        ValueError: no judgment shows three of the items.
    """
    within = dataset.judgments.among(rows)
    if not len(within):
        raise ValueError(f"data: no judgment in {dataset.folder} shows three of the {len(rows)} clips asked for")
    judged = np.unique(within.triplets)
    judgments = dataset.judgments.among(judged, reindex=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stimuli = stimuli_of(dataset, judgments.items, embedder.preprocess, clips, cache, min_clip)
    run_fused(embedder.to(device).backbone)
    return Held(embedder.embed_all(stimuli, batch_size=16, progress=True), judgments)


def _rows(dataset: Dataset, names: Sequence[str], split: str, run: Path) -> NDArray[np.int64]:
    place = {name: row for row, name in enumerate(dataset.items)}
    rows = np.array([place[name] for name in names if name in place], dtype=np.int64)
    if not len(rows):
        raise ValueError(f"split: none of the {len(names)} {split} clips of {run} is in {dataset.folder}")
    return rows


def _finish(dataset: Dataset, held: list[Held], resamples: int, seed: int) -> Evaluation:
    return evaluate(held, resamples=resamples, seed=seed, known_ceiling=pooled_ceiling(dataset, held))


def pooled_ceiling(dataset: Dataset, held: Sequence[Held]) -> dict[str, dict[str, float]]:
    """Return the exact ceiling of simulated observers over the judgments of all sets; empty for people's judgments."""
    found = [known_ceiling(dataset, part.judgments) for part in held]
    weights = [len(part.judgments) for part in held]
    return {
        name: {"upper": float(np.average([ceiling[name]["upper"] for ceiling in found], weights=weights))}
        for name in found[0]
    }
