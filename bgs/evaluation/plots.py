"""Pictures of a run: how training went, and the human geometry of held-out clips beside the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from bgs.data.formats.writing import replacing
from bgs.data.geometry import dissimilarity
from bgs.evaluation.evaluate import Held, cosine_similarity

MAX_CURVES = 6


def plot_geometry(path: str | Path, people: Held, models: Mapping[str, Held]) -> None:
    """Draw the dissimilarities of people and of models as matrices over the same clips.

    Clips are ordered by average-linkage clustering of the human matrix, whose unobserved pairs are white. Each model's
    colours span its own range, since only the order of its distances is compared with people's.

    Args:
        path: PNG file to write.
        people: the judgments; its embeddings are not looked at.
        models: embeddings of the same clips by heading.
    """
    human = dissimilarity(people.judgments)
    order = _order(human)
    found = {"people": human} | {name: 1 - cosine_similarity(held.embeddings) for name, held in models.items()}
    figure = Figure(figsize=(4 * len(found), 4.4), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="white")
    for axis, (name, rdm) in zip(axes, found.items(), strict=True):
        shown = np.array(rdm, dtype=np.float64)[np.ix_(order, order)]
        np.fill_diagonal(shown, np.nan)
        image = axis.imshow(np.ma.masked_invalid(shown), cmap=colours, interpolation="nearest")
        axis.set(title=name, xlabel="held-out clip", xticks=[], yticks=[])
        figure.colorbar(image, ax=axis, shrink=0.7, label="dissimilarity")
    save_figure(figure, path)


def plot_training(path: str | Path, fits: Sequence[Mapping[str, Any]], criterion: str) -> None:
    """Draw loss terms and validation score over epochs, a line for each fit.

    Args:
        path: PNG file to write.
        fits: `history` and `scores` of each fit, as in metrics.json; the first few are drawn.
        criterion: what the scores are.
    """
    panels = {"loss": "training loss", "triplet": "training triplet term", "rsa": "training correlation with people"}
    if any(fit["scores"] for fit in fits):
        panels["scores"] = f"validation {criterion}"
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, fit in enumerate(fits[:MAX_CURVES]):
            values = fit["scores"] if name == "scores" else [epoch.get(name, np.nan) for epoch in fit["history"]]
            axis.plot(np.arange(1, len(values) + 1), values, label=f"fold {number}" if len(fits) > 1 else None)
        axis.set(xlabel="epoch", title=title)
        axis.grid(alpha=0.3)
    if len(fits) > 1:
        figure.axes[0].legend(fontsize="small")
    save_figure(figure, path)


def _order(rdm: NDArray[np.float64]) -> NDArray[np.int64]:
    filled = np.where(np.isfinite(rdm), rdm, np.nanmean(rdm))
    np.fill_diagonal(filled, 0)
    return np.asarray(leaves_list(linkage(squareform(filled, checks=False), method="average")))


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replacing(Path(path)) as scratch:
        figure.savefig(scratch, format="png", dpi=110)
