"""A picture of a data set: a few frames of several clips of each interaction, to look at."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from bgs.data.formats.writing import replacing

LABEL_WIDTH = 84  # pixels


def contact_sheet(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    per_interaction: int = 1,
    frames: int = 8,
    size: int = 96,
) -> Path:
    """Write a PNG with one row per clip, labelled by interaction.

    Args:
        folder: A synthetic data set.
        path: PNG to write.
        per_interaction: Clips shown of each interaction.
        frames: Frames shown of each clip, evenly spaced.
        size: Width of a frame on the sheet, in pixels.

    Returns:
        `path`.
    """
    folder, path = Path(folder), Path(path)
    shown: dict[str, list[str]] = {}
    with open(folder / "raw" / "utils" / "latents.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            shown.setdefault(row["interaction"], []).append(row["video_name"])
    rows = [(interaction, name) for interaction in sorted(shown) for name in shown[interaction][:per_interaction]]
    sheet = Image.new("RGB", (LABEL_WIDTH + frames * size, len(rows) * size), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for index, (interaction, name) in enumerate(rows):
        draw.text((4, index * size + 4), f"{interaction}\n{Path(name).stem}", fill=(0, 0, 0))
        with av.open(str(folder / "clips" / name)) as container:
            images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for column, frame in enumerate(np.linspace(0, len(images) - 1, frames).round().astype(int)):
            sheet.paste(
                Image.fromarray(images[frame]).resize((size, size), Image.Resampling.LANCZOS),
                (LABEL_WIDTH + column * size, index * size),
            )
    with replacing(path) as partial:
        sheet.save(partial, format="PNG")
    return path
