"""Figures of the analyses, one each, with chance and ceiling where they have any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bgs.evaluation.analyses import Findings
from bgs.evaluation.evaluate import Evaluation
from bgs.evaluation.layers import LayerwiseRSA
from bgs.evaluation.plots import save_figure
from bgs.evaluation.probes import Probes
from bgs.evaluation.reliability import Reliability
from bgs.evaluation.report import LABELS
from bgs.evaluation.variance import Partition

SIGNIFICANT = 0.05
LONGEST = 24
"""Characters of a model's name that a figure has room for; of longer ones, such as paths, the end is shown."""
_CEILING: dict[str, Any] = {"color": "0.4", "linestyle": "--", "linewidth": 1}
_CHANCE: dict[str, Any] = {"color": "0.4", "linestyle": ":", "linewidth": 1}


def plot_findings(findings: Findings, output: Path) -> list[Path]:
    """Draw a figure for each analysis that was made.

    Args:
        findings: what to draw.
        output: the JSON file of the findings; figures are named after it, `metrics-probes.png` beside `metrics.json`.

    Returns:
        The files written.
    """
    files = {}
    if len(findings.evaluations) > 1:
        files["comparison"] = comparison_figure(findings.evaluations)
    if findings.reliability is not None:
        files["reliability"] = reliability_figure(findings.reliability)
    if findings.probes is not None:
        files["probes"] = probes_figure(findings.probes)
    if findings.variance is not None:
        bound = findings.reliability[0].all_pairs if findings.reliability else None
        files["variance"] = variance_figure(findings.variance, bound)
    if findings.layers is not None:
        files["layers"] = layers_figure(findings.layers)
    written = []
    for name, figure in files.items():
        path = output.with_name(f"{output.stem}-{name}.png")
        save_figure(figure, path)
        written.append(path)
    return written


def comparison_figure(evaluations: Mapping[str, Evaluation]) -> Figure:
    """Draw every measure of every model."""
    measures = list(next(iter(evaluations.values())).measures)
    figure = Figure(figsize=(2.6 * len(measures), 3.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        found = [evaluation.measures[name] for evaluation in evaluations.values()]
        _bars(axis, np.arange(len(found)), [item.value for item in found], [item.ci95 for item in found])
        _limits(axis, found[0].chance, (found[0].ceiling or {}).get("upper"))
        axis.set(ylabel=LABELS[name])
        axis.set_xticks(np.arange(len(found)), [_short(name) for name in evaluations], rotation=30, ha="right")
    _legend(figure)
    return figure


def reliability_figure(parts: Sequence[Reliability]) -> Figure:
    """Draw how the reliability is spread over the splits of the participants."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for number, part in enumerate(parts):
        label = f"fold {number}" if len(parts) > 1 else "split-half, Spearman-Brown"
        if part.value is None:
            axis.plot([], [], " ", label=f"{label}: {part.reason}")
            continue
        colour = f"C{number % 10}"
        axis.hist(part.values, bins=20, color=colour, alpha=0.5, label=f"{label}: {part.value:.3f}")
        axis.axvline(part.value, color=colour)
        if part.ceiling is not None:
            axis.axvline(part.ceiling, **_CEILING, label="ceiling of r, of all pairs" if number == 0 else None)
    axis.axvline(0, **_CHANCE, label="chance")
    axis.set(xlabel="reliability of people's dissimilarities", ylabel="splits of the participants")
    _legend(figure)
    return figure


def probes_figure(probes: Mapping[str, Probes]) -> Figure:
    """Draw r of every rating and model; filled where p, corrected over ratings, is below 5 %."""
    ratings = [probe.name for probe in next(iter(probes.values())).probes]
    figure = Figure(figsize=(max(5.0, 0.8 * len(ratings) + 1), 4), layout="constrained")
    axis, width = figure.subplots(), 0.8 / len(probes)
    for number, (name, found) in enumerate(probes.items()):
        places = np.arange(len(ratings)) + (number - (len(probes) - 1) / 2) * width
        values = [probe.r for probe in found.probes]
        bars = _bars(
            axis, places, values, [probe.r_ci95 for probe in found.probes], width, f"C{number % 10}", _short(name)
        )
        for bar, probe in zip(bars, found.probes, strict=True):
            if probe.p_corrected is None or probe.p_corrected >= SIGNIFICANT:
                bar.set_alpha(0.3)
    axis.axhline(0, **_CHANCE, label="chance")
    axis.set(ylabel="held-out clips, Pearson r")
    axis.set_xticks(np.arange(len(ratings)), ratings, rotation=40, ha="right")
    axis.set_title(f"pale: corrected p of {SIGNIFICANT} or more, or none", fontsize="small")
    _legend(figure)
    return figure


def variance_figure(partition: Partition, reliability: float | None = None) -> Figure:
    """Draw all parts and their sum; the reliability of people's dissimilarities is what can be explained at all."""
    shares = [*partition.parts.values(), partition.explained[max(partition.explained, key=len)]]
    labels = [("only " if len(names) == 1 else "") + " +\n".join(map(_short, names)) for names in partition.parts]
    figure = Figure(figsize=(1.3 * len(shares) + 1.5, 3.8), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(shares))
    _bars(axis, places, [share.value for share in shares], [share.ci95 for share in shares])
    _limits(axis, 0.0, reliability)
    axis.set(ylabel="held-out clips, R²")
    axis.set_xticks(places, [*labels, "all together"], rotation=20, ha="right")
    _legend(figure)
    return figure


def layers_figure(layers: Mapping[str, LayerwiseRSA]) -> Figure:
    """Draw agreement with people by layer, the best one marked."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    first = next(iter(layers.values()))
    for number, (name, found) in enumerate(layers.items()):
        order = sorted(found.layers, key=lambda layer: layer.number)
        places = [layer.number for layer in order]
        values = [np.nan if layer.value is None else layer.value for layer in order]
        bounds = np.array([layer.ci95 or (np.nan, np.nan) for layer in order])
        colour = f"C{number % 10}"
        axis.plot(places, values, color=colour, marker=".", label=_short(name))
        axis.fill_between(places, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.2, linewidth=0)
        if found.best is not None:
            axis.plot(found.best, values[places.index(found.best)], color=colour, marker="*", markersize=12)
    _limits(axis, 0.0, first.ceiling)
    axis.set(xlabel="layer", ylabel=f"agreement with people, {first.method.capitalize()}")
    _legend(figure)
    return figure


def _bars(
    axis: Axes,
    places: np.ndarray,
    values: Sequence[float | None],
    intervals: Sequence[tuple[float, float] | None],
    width: float = 0.7,
    colour: str = "C0",
    label: str | None = None,
) -> list:
    heights = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    bars = axis.bar(places, np.nan_to_num(heights), width, color=colour, label=label)
    for place, bounds in zip(places, intervals, strict=True):
        if bounds is not None:
            axis.plot([place, place], bounds, color="black", linewidth=1)
    return list(bars)


def _limits(axis: Axes, chance: float | None, ceiling: float | None) -> None:
    if chance is not None:
        axis.axhline(chance, **_CHANCE, label="chance")
    if ceiling is not None:
        axis.axhline(ceiling, **_CEILING, label="ceiling")


def _legend(figure: Figure) -> None:
    """Put one legend of all panels above them, where it hides nothing."""
    found = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if found:
        figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=2, fontsize="small")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
