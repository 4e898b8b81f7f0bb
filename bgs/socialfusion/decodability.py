"""What can be read off linearly at each stage of the model: a task's labels, or where people look.

States are pooled over the image's positions and, where an example has boxes, over each box's, so that all stages are
compared by the same pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm.auto import tqdm

from bgs.evaluation.bootstrap import interval, resample_items
from bgs.evaluation.probes import probe_ratings
from bgs.socialfusion.data import Example, collate
from bgs.socialfusion.model import SocialFusion
from bgs.socialfusion.tasks import GAZE, TASKS

FOLDS, RESAMPLES = 5, 1000
PENALTIES = (1e-4, 1e-2, 1.0)
"""Inverse strengths of the logistic regression's penalty, of which an inner cross-validation takes one."""

_LEAST_FOLDS = 3  # leaves each class two training examples, which the inner cross-validation needs


@dataclass(frozen=True)
class Decoded:
    """How well a task is read off one stage, on held-out examples.

    Attributes:
        task: its name.
        stage: its name, see `bgs.socialfusion.model.Stages`.
        measure: `balanced_accuracy` (mean of the classes' recalls), or `r`: the correlation with the mean gaze point,
            averaged over x and y.
        value: of the measure.
        ci95: bootstrap interval over examples.
        chance: value that knows nothing.
        n: examples.
    """

    task: str
    stage: str
    measure: str
    value: float
    ci95: tuple[float, float] | None
    chance: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return vars(self) | {"ci95": None if self.ci95 is None else list(self.ci95)}


@torch.no_grad()
def pooled_stages(
    model: SocialFusion, examples: Sequence[Example], *, batch: int = 8, progress: bool = False
) -> dict[str, NDArray[np.float64]]:
    """Return each stage's features of examples of one task.

    Args:
        model: in whatever mode; it is run in evaluation mode.
        examples: (N) of one task.
        batch: examples at a time.
        progress: whether to show a progress bar.

    Returns:
        By stage (N, (1 + boxes) * width): the mean over all patches, then over each box's.
    """
    training = model.training
    model.eval()
    boxes = TASKS[examples[0].task].boxes
    found: dict[str, list[Tensor]] = {}
    for start in tqdm(range(0, len(examples), batch), desc="stages", disable=not progress, leave=False):
        inputs = collate(examples[start : start + batch], model.preprocess, model.grid).to(model.device)
        stages = model.stages(inputs)
        weights = torch.cat([torch.ones_like(inputs.masks[:, :1]), inputs.masks[:, :boxes]], 1)
        weights = weights / weights.sum(2, keepdim=True)
        for name, states in zip(stages.names, stages.states, strict=True):
            pooled = torch.einsum("brp,bpd->brd", weights, states.float())
            found.setdefault(name, []).append(pooled.flatten(1).cpu())
    model.train(training)
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def decodability(
    model: SocialFusion,
    examples: Sequence[Example],
    *,
    batch: int = 8,
    folds: int = FOLDS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> list[Decoded]:
    """Probe every stage for every task that there are examples of.

    Labels are read by logistic regression of scaled features under nested, stratified cross-validation, gaze points by
    the ridge probes of `bgs.evaluation.probes`.

    Args:
        model: trained or not.
        examples: best those of a test manifest, which the model was not trained on.
        batch: examples at a time.
        folds: of the cross-validation, at least 3; classes with fewer examples than that are left out.
        resamples: bootstrap draws of examples.
        seed: of folds and draws.
        progress: whether to show progress bars.

    Returns:
        One for each task and stage; none for a task with fewer than two classes left.

    Raises:
        ValueError: fewer folds than 3, or too few examples of gaze following for them.
    """
    if folds < _LEAST_FOLDS:
        raise ValueError(f"folds: {folds}; expected at least {_LEAST_FOLDS}")
    found = []
    for task in TASKS:
        own = [example for example in examples if example.task == task]
        if task != GAZE:
            counts = np.bincount([e.label for e in own], minlength=len(TASKS[task].classes))
            own = [example for example in own if counts[example.label] >= folds]
        if not own or (task != GAZE and len({example.label for example in own}) < 2):
            continue
        for stage, features in pooled_stages(model, own, batch=batch, progress=progress).items():
            if task == GAZE:
                points = np.array([np.mean(example.gaze, axis=0) for example in own])
                found.append(_gaze_probe(stage, features, points, folds, resamples, seed))
            else:
                labels = np.array([example.label for example in own])
                found.append(_label_probe(task, stage, features, labels, folds, resamples, seed))
    return found


def _label_probe(
    task: str,
    stage: str,
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    folds: int,
    resamples: int,
    seed: int,
) -> Decoded:
    regression = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    probe = GridSearchCV(
        regression,
        {"logisticregression__C": PENALTIES},
        scoring="balanced_accuracy",
        cv=StratifiedKFold(min(3, folds - 1), shuffle=True, random_state=seed),
    )
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    answers = cross_val_predict(probe, features, labels, cv=parts)
    right = answers == labels
    classes = np.unique(labels)
    draws = resample_items(len(labels), resamples, seed)
    with np.errstate(invalid="ignore"):
        recalls = [(draws @ (right & (labels == k))) / (draws @ (labels == k)) for k in classes]
    return Decoded(
        task,
        stage,
        "balanced_accuracy",
        float(balanced_accuracy_score(labels, answers)),
        interval(np.mean(recalls, axis=0)),
        1 / len(classes),
        len(labels),
    )


def _gaze_probe(
    stage: str, features: NDArray[np.float64], points: NDArray[np.float64], folds: int, resamples: int, seed: int
) -> Decoded:
    probes = probe_ratings(
        features, points, ("x", "y"), folds=folds, inner_folds=folds, permutations=0, resamples=resamples, seed=seed
    )
    values = [probe.r if probe.r is not None else 0.0 for probe in probes.probes]
    ci95 = interval(probes.resampled.mean(axis=1))
    return Decoded(GAZE, stage, "r", float(np.mean(values)), ci95, 0.0, len(points))
