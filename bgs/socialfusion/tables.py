"""Tables for the terminal: measures of the tasks, and what the analyses found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from bgs.socialfusion.decodability import Decoded
from bgs.socialfusion.gradients import ALL, Conflict
from bgs.socialfusion.tasks import GAZE
from bgs.socialfusion.transfer import Transfer

_CLASSES = ("accuracy", "macro_f1", "map", "chance")
_GAZE = ("auc", "distance", "min_distance")


def measures_table(measures: Mapping[str, Mapping[str, Any]]) -> Table:
    """Lay out each task's measures, the first-reported one starred."""
    found = _table("test examples", "task", "* the measure that is reported first; distances are errors")
    for name in (*_CLASSES, *_GAZE, "n"):
        found.add_column(name, justify="right", no_wrap=True)
    for task, values in measures.items():
        own = _GAZE if task == GAZE else _CLASSES
        cells = [
            f"{values[name]:.3f}{'*' if name == values['metric'] else ''}" if name in own else ""
            for name in (*_CLASSES, *_GAZE)
        ]
        found.add_row(task, *cells, str(values["n"]))
    return found


def decodability_table(decoded: Sequence[Decoded]) -> Table:
    """Lay out what is decodable, stages down and tasks across."""
    caption = "balanced accuracy of labels, correlation of gaze; held-out examples"
    found = _table("linear decodability", "stage", caption)
    tasks = list(dict.fromkeys(item.task for item in decoded))
    for task in tasks:
        found.add_column(task, justify="right", no_wrap=True)
    cells = {(item.stage, item.task): f"{item.value:.2f}{_interval(item.ci95)}" for item in decoded}
    for stage in dict.fromkeys(item.stage for item in decoded):
        found.add_row(stage, *(cells.get((stage, task), "") for task in tasks))
    chance = {item.task: f"{item.chance:.2f}" for item in decoded}
    found.add_row("chance", *(chance[task] for task in tasks))
    return found


def conflict_table(conflict: Conflict) -> Table:
    """Lay out the cosines between the tasks' gradients over all shared parameters."""
    found = _table("gradients, cosine over all shared parameters", "task", "negative: the tasks conflict")
    for task in conflict.tasks:
        found.add_column(task, justify="right", no_wrap=True)
    for task, row in zip(conflict.tasks, conflict.cosines[ALL], strict=True):
        found.add_row(task, *("" if np.isnan(value) else f"{value:+.3f}" for value in row))
    return found


def transfer_table(found: Sequence[Transfer]) -> Table:
    """Lay out joint against single-task training."""
    table = _table("transfer: joint against single-task training", "task", "95 % bootstrap interval over test examples")
    for name in ("measure", "joint", "single", "gain", "transfer", "n"):
        table.add_column(name, justify="left" if name == "measure" else "right", no_wrap=True)
    for item in found:
        gain = f"{item.gain:+.3f}{_interval(item.ci95)}"
        table.add_row(
            item.task, item.measure, f"{item.joint:.3f}", f"{item.single:.3f}", gain, item.direction, str(item.n)
        )
    return table


def _table(title: str, first: str, caption: str) -> Table:
    found = Table(title=title, caption=caption)
    found.add_column(first, no_wrap=True)
    return found


def _interval(ci95: tuple[float, float] | None) -> str:
    return "" if ci95 is None else f" [{ci95[0]:.2f},{ci95[1]:.2f}]"
