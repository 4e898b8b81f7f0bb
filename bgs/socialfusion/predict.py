"""A model's answers to examples, as JSON-ready records, from which measures and comparisons are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from bgs.socialfusion.data import Example, collate
from bgs.socialfusion.gaze import gaze_measures
from bgs.socialfusion.metrics import summarise
from bgs.socialfusion.model import SocialFusion
from bgs.socialfusion.tasks import GAZE, TASKS


def predict(
    model: SocialFusion, examples: Sequence[Example], *, batch: int = 8, bf16: bool = False, progress: bool = False
) -> list[dict[str, Any]]:
    """Answer examples.

    Args:
        model: in whatever mode; it answers in evaluation mode.
        examples: of any tasks.
        batch: examples at a time.
        bf16: compute in bfloat16.
        progress: whether to show a progress bar.

    Returns:
        For each example `task`, `image` and, for classification, `scores` (log-likelihoods of the classes), `label`
        and `correct`, for gaze following `auc`, `distance` and `min_distance`.
    """
    training = model.training
    model.eval()
    records: list[dict[str, Any]] = []
    try:
        for start in tqdm(range(0, len(examples), batch), desc="answers", disable=not progress, leave=False):
            part = examples[start : start + batch]
            inputs = collate(part, model.preprocess, model.grid).to(model.device)
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
                scores = model.score(inputs)
            for example, classes, gaze in zip(part, scores.classes, scores.gaze, strict=True):
                record: dict[str, Any] = {"task": example.task, "image": str(example.image)}
                if classes is not None:
                    values = classes.double().cpu()
                    record |= {"scores": values.tolist(), "label": example.label}
                    record["correct"] = int(values.argmax()) == example.label
                if gaze is not None:
                    record |= gaze_measures(gaze.cpu().numpy(), example.gaze)
                records.append(record)
    finally:
        model.train(training)
    return records


def measures(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each task's measures, of the tasks that there are."""
    parts = {task: [record for record in records if record["task"] == task] for task in TASKS}
    return {task: summarise(task, part) for task, part in parts.items() if part}


def compare_key(task: str) -> str:
    """Name the field of a record that says how well one example was answered; of a distance, less is better."""
    return "min_distance" if task == GAZE else "correct"
