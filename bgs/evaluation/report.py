"""Evaluations for people to read: a table in the terminal and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from bgs.data.formats.writing import replacing
from bgs.evaluation.evaluate import Evaluation, Measure

TABLE_WIDTH = 110
"""Characters that the widest table takes."""

LABELS = {
    "odd_one_out.three_way": "three-way accuracy",
    "odd_one_out.two_way": "two-way accuracy",
    "rsa.pearson": "RSA, Pearson r",
    "rsa.spearman": "RSA, Spearman r",
    "rsa.explained_variance": "explained variance",
    "rsa.cosine": "RSA, cosine",
    "rsa.tau-a": "RSA, Kendall tau-a",
}


def table(evaluations: Mapping[str, Evaluation], title: str, compare: tuple[str, str] | None = None) -> Table:
    """Lay out evaluations of the same judgments side by side.

    Args:
        evaluations: by column heading, at least one.
        title: what was evaluated.
        compare: two of the headings (a, b): a last column gives a - b with its paired interval.

    Returns:
        A table with values, 95 % intervals, chance and ceiling.
    """
    found = Table(title=title, caption="95 % bootstrap intervals over items", show_lines=True)
    found.add_column("measure", no_wrap=True)
    for heading in evaluations:
        found.add_column(heading, justify="right", no_wrap=True)
    difference = evaluations[compare[0]].minus(evaluations[compare[1]]) if compare else {}
    if compare:
        found.add_column("difference", justify="right", no_wrap=True)
    for heading in ("chance", "ceiling", "n"):
        found.add_column(heading, justify="right")
    first = next(iter(evaluations.values()))
    for name, measure in first.measures.items():
        cells = [_cell(evaluation.measures[name]) for evaluation in evaluations.values()]
        if compare:
            cells.append(_cell(difference[name], signed=True))
        chance = "" if measure.chance is None else f"{measure.chance:.3f}"
        ceiling = "" if not measure.ceiling else f"{measure.ceiling.get('upper', float('nan')):.3f}"
        found.add_row(LABELS[name], *cells, chance, ceiling, f"{measure.n:,}")
    return found


def _cell(measure: Measure, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if measure.value is None:
        return "-"
    bounds = "" if measure.ci95 is None else f"\n[{measure.ci95[0]:{sign}.3f}, {measure.ci95[1]:{sign}.3f}]"
    return f"{measure.value:{sign}.3f}{bounds}"


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that the file is there whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as scratch:
        scratch.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
