"""Tables for the terminal: measures of the tasks, transfer between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from bgs.socialfusion.tasks import GAZE

_CLASSES = ("accuracy", "macro_f1", "map", "chance")
_GAZE = ("auc", "distance", "min_distance")


def measures_table(measures: Mapping[str, Mapping[str, Any]]) -> Table:
    """Lay out each task's measures, the first-reported one starred."""
    found = Table(title="test examples", caption="* the measure that is reported first; distances are errors")
    found.add_column("task")
    for name in (*_CLASSES, *_GAZE):
        found.add_column(name, justify="right")
    found.add_column("n", justify="right")
    for task, values in measures.items():
        own = _GAZE if task == GAZE else _CLASSES
        cells = [
            f"{values[name]:.3f}{'*' if name == values['metric'] else ''}" if name in own else ""
            for name in (*_CLASSES, *_GAZE)
        ]
        found.add_row(task, *cells, str(values["n"]))
    return found
