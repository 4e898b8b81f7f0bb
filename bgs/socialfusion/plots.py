"""Figures of the analyses of a SocialFusion run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from bgs.socialfusion.decodability import Decoded
from bgs.socialfusion.gradients import Conflict
from bgs.socialfusion.transfer import Transfer


def conflict_figure(conflict: Conflict) -> Figure:
    """Draw the cosines of each module as a matrix over tasks, red where tasks conflict; grey where undefined."""
    count = len(conflict.cosines)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.2 * columns, 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    image = None
    for axis, (module, matrix) in zip(axes, conflict.cosines.items(), strict=False):
        axis.set_facecolor("0.8")
        image = axis.imshow(np.ma.masked_invalid(matrix), vmin=-1, vmax=1, cmap="RdBu")
        axis.set_title(module, fontsize=9)
        ticks = range(len(conflict.tasks))
        axis.set_xticks(ticks, conflict.tasks, rotation=60, ha="right", fontsize=7)
        axis.set_yticks(ticks, conflict.tasks, fontsize=7)
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 else "black"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    for axis in axes[count:]:
        axis.set_axis_off()
    if image is not None:
        figure.colorbar(image, ax=axes.tolist(), shrink=0.6, label="cosine between gradients")
    return figure


def decodability_figure(decoded: Sequence[Decoded]) -> Figure:
    """Draw a panel for each task: the measure at each stage, with its interval and chance."""
    tasks = list(dict.fromkeys(item.task for item in decoded))
    figure = Figure(figsize=(3.0 * len(tasks), 3.2), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        own = [item for item in decoded if item.task == task]
        values = [item.value for item in own]
        bounds = [item.ci95 or (item.value, item.value) for item in own]
        errors = [
            [max(v - low, 0.0) for v, (low, _) in zip(values, bounds, strict=True)],
            [max(high - v, 0.0) for v, (_, high) in zip(values, bounds, strict=True)],
        ]
        axis.errorbar(range(len(own)), values, yerr=errors, marker="o", markersize=3, linewidth=1, capsize=2)
        axis.axhline(own[0].chance, color="0.4", linestyle=":", linewidth=1)
        axis.set_xticks(range(len(own)), [item.stage for item in own], rotation=60, ha="right", fontsize=7)
        axis.set_title(f"{task} (n = {own[0].n})", fontsize=9)
        axis.set_ylabel(own[0].measure.replace("_", " "), fontsize=8)
    return figure


def transfer_figure(found: Sequence[Transfer]) -> Figure:
    """Draw the gain of joint over single-task training of each task, with its interval."""
    figure = Figure(figsize=(1.2 + 1.1 * len(found), 3.2), layout="constrained")
    axis = figure.subplots()
    for place, item in enumerate(found):
        low, high = item.ci95 or (item.gain, item.gain)
        errors = [[max(item.gain - low, 0.0)], [max(high - item.gain, 0.0)]]
        axis.errorbar([place], [item.gain], yerr=errors, marker="o", capsize=3, color="C0")
    axis.axhline(0, color="0.4", linestyle=":", linewidth=1)
    axis.set_xticks(range(len(found)), [f"{item.task}\n{item.measure}" for item in found], fontsize=7)
    axis.set_ylabel("gain of joint training")
    return figure
