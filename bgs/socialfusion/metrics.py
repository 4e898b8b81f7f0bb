"""How good answers are: the measures of the five tasks' datasets, over a set of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from bgs.socialfusion.tasks import GAZE, TASKS

GAZE_MEASURES = ("auc", "distance", "min_distance")


def classification_measures(task: str, scores: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, float]:
    """Return the measures of a classification task.

    Args:
        task: its name.
        scores: (N, K) log-likelihoods of the answers.
        labels: (N,) indices of the right ones.

    Returns:
        `accuracy`; `macro_f1` over classes that are right or answered somewhere; `map`: average precision, ranking
        examples by a class's share of the answers' probabilities, of the positive class or averaged over the classes
        that are right somewhere; `chance`: accuracy of always answering the most frequent class.
    """
    found = scores.argmax(axis=1)
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares = shifted / shifted.sum(axis=1, keepdims=True)
    positive = TASKS[task].positive
    present = np.unique(labels) if positive is None else [TASKS[task].classes.index(positive)]
    precisions = [average_precision_score(labels == k, shares[:, k]) for k in present if (labels == k).any()]
    return {
        "accuracy": float((found == labels).mean()),
        "macro_f1": float(f1_score(labels, found, average="macro", zero_division=0.0)),
        "map": float(np.mean(precisions)) if precisions else 0.0,
        "chance": float(np.bincount(labels).max() / len(labels)),
    }


def summarise(task: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the measures of one task over its predictions.

    Args:
        task: its name.
        records: what `predict` gave for its examples, at least one.
    """
    if task == GAZE:
        measures = {name: float(np.mean([record[name] for record in records])) for name in GAZE_MEASURES}
    else:
        scores = np.array([record["scores"] for record in records])
        measures = classification_measures(task, scores, np.array([record["label"] for record in records]))
    return {"n": len(records), "metric": TASKS[task].metric, **measures}
