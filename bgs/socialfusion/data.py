"""Examples of all five tasks in one format, JSON lines, and the batches made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bgs.data.preprocess import Preprocess
from bgs.socialfusion.gaze import heat_maps
from bgs.socialfusion.tasks import GAZE, TASKS

BOXES = 2
"""Roles of boxes: the person in question, and the other of a relation."""

NO_LABEL = -1
_FIELDS = {"image", "task", "label", "gaze", "boxes"}

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Example:
    """One question about one image.

    Attributes:
        image: the file.
        task: name of the task.
        label: index into the task's classes; `NO_LABEL` for gaze following.
        gaze: annotated points (x, y) in [0, 1], one an annotator; empty for the other tasks.
        boxes: (x1, y1, x2, y2) in [0, 1], in order of roles.
    """

    image: Path
    task: str
    label: int = NO_LABEL
    gaze: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Examples as tensors; tasks may be mixed.

    Attributes:
        tasks: name of the task of each example.
        pixels: (B, 3, H, W) uint8.
        masks: (B, BOXES, P) float32, 1 where a box covers some of a patch.
        labels: (B,) int64, `NO_LABEL` for gaze following.
        heat_maps: (B, M, M) float32 that sum to 1, of zeros where the task is another.
    """

    tasks: tuple[str, ...]
    pixels: Tensor
    masks: Tensor
    labels: Tensor
    heat_maps: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("pixels", "masks", "labels", "heat_maps")}
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.tasks)


def read_manifest(path: str | Path) -> list[Example]:
    """Read a manifest: one JSON object a line, the format of docs/socialfusion.md.

    Args:
        path: the file; images are relative to its folder.

    Returns:
        The examples in order.

    Raises:
        FileNotFoundError: there is no such file, or an image is not there.
        ValueError: a row is wrong; the message names file and row, counted from 1.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such manifest")
    examples = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            examples.append(_example(line, file.parent, f"{file}, row {number}"))
    if not examples:
        raise ValueError(f"{file}: no examples")
    return examples


def _example(line: str, folder: Path, where: str) -> Example:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
    if unknown := sorted(set(row) - _FIELDS):
        raise ValueError(f"{where}: unknown fields {', '.join(unknown)}; known: {', '.join(sorted(_FIELDS))}")
    name, picture = row.get("task"), row.get("image")
    if name not in TASKS:
        raise ValueError(f"{where}: task: expected one of {', '.join(TASKS)}, got {name!r}")
    if not isinstance(picture, str) or not picture:
        raise ValueError(f"{where}: image: expected a path, got {picture!r}")
    image = folder / picture
    if not image.is_file():
        raise FileNotFoundError(f"{where}: image: no file {image}")
    task = TASKS[name]
    boxes = tuple(_box(box, f"{where}: boxes[{k}]") for k, box in enumerate(_list(row, "boxes", where)))
    if len(boxes) != task.boxes:
        raise ValueError(f"{where}: boxes: task {name!r} needs {task.boxes}, got {len(boxes)}")
    if name == GAZE:
        points = tuple(_numbers(point, 2, f"{where}: gaze[{k}]") for k, point in enumerate(_list(row, "gaze", where)))
        if not points or "label" in row:
            raise ValueError(f"{where}: task {name!r} needs gaze points [[x, y], ...] and no label")
        return Example(image, name, gaze=tuple((x, y) for x, y in points), boxes=boxes)
    if row.get("label") not in task.classes or "gaze" in row:
        raise ValueError(f"{where}: label: expected one of {', '.join(task.classes)}, got {row.get('label')!r}")
    return Example(image, name, label=task.classes.index(row["label"]), boxes=boxes)


def _list(row: dict[str, Any], field: str, where: str) -> list[Any]:
    value = row.get(field, [])
    if not isinstance(value, list):
        raise ValueError(f"{where}: {field}: expected a list, got {value!r}")
    return value


def _numbers(value: Any, count: int, where: str) -> tuple[float, ...]:
    fine = isinstance(value, list) and len(value) == count
    if not fine or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and 0 <= v <= 1 for v in value
    ):
        raise ValueError(f"{where}: expected {count} numbers in [0, 1], got {value!r}")
    return tuple(float(v) for v in value)


def _box(value: Any, where: str) -> Box:
    x1, y1, x2, y2 = _numbers(value, 4, where)
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"{where}: expected x1 < x2 and y1 < y2, got {value!r}")
    return x1, y1, x2, y2


def box_masks(boxes: Sequence[Box], grid: int) -> Tensor:
    """Mark the patches that boxes cover.

    A patch is marked where box and patch share some area, so that no box is lost, however small.

    Args:
        boxes: at most `BOXES` of (x1, y1, x2, y2) in [0, 1].
        grid: patches a side.

    Returns:
        (BOXES, grid * grid) float32 of 0 and 1, row by row; zeros for boxes that are not there.
    """
    masks = torch.zeros(BOXES, grid, grid)
    edges = torch.arange(grid + 1, dtype=torch.float64) / grid
    for role, (x1, y1, x2, y2) in enumerate(boxes):
        across = (x1 < edges[1:]) & (x2 > edges[:-1])
        down = (y1 < edges[1:]) & (y2 > edges[:-1])
        masks[role] = (down[:, None] & across[None, :]).float()
    return masks.flatten(1)


def load_image(path: Path, preprocess: Preprocess) -> Tensor:
    """Read an image as (3, H, W) uint8, resized whole: a crop would move boxes and gaze points.

    Raises:
        ValueError: it is no image that Pillow reads.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error
    return preprocess.resize_frames(pixels[None])[0]


def collate(examples: Sequence[Example], preprocess: Preprocess, grid: int) -> Batch:
    """Make a batch.

    Args:
        examples: of any tasks.
        preprocess: of the model.
        grid: patches a side.
    """
    return Batch(
        tuple(example.task for example in examples),
        torch.stack([load_image(example.image, preprocess) for example in examples]),
        torch.stack([box_masks(example.boxes, grid) for example in examples]),
        torch.tensor([example.label for example in examples]),
        torch.stack([heat_maps(example.gaze) for example in examples]),
    )
