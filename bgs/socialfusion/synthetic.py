"""Rendered scenes with ground truth for all five tasks, so that everything runs without downloads.

They are drawings, each answer visible in its geometry: pupils that look at the viewer or past, mouths and brows, raised
fingers, two people who stand in some relation, and a face that looks at one of the things around it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from bgs.data.formats.writing import replacing_folder
from bgs.socialfusion.tasks import TASKS

# Drawn at this multiple of the size and scaled down, for smooth edges.
_OVERSAMPLE = 4
INK, SKIN, WHITE = (30, 26, 34), (232, 190, 160), (250, 250, 250)

Colour = tuple[int, int, int]
Row = dict[str, Any]

# Fingers raised (index to little), and whether the thumb is out.
_HANDS: dict[str, tuple[tuple[int, ...], bool]] = {
    "fist": ((), False),
    "one": ((0,), False),
    "peace": ((0, 1), False),
    "four": ((0, 1, 2, 3), False),
    "palm": ((0, 1, 2, 3), True),
    "like": ((), True),
}


class _Canvas:
    """A picture in coordinates of [0, 1]."""

    def __init__(self, size: int, ground: Colour) -> None:
        self._size, self._side = size, size * _OVERSAMPLE
        self._picture = Image.new("RGB", (self._side, self._side), ground)
        self._draw = ImageDraw.Draw(self._picture)

    def disc(self, x: float, y: float, rx: float, fill: Colour, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self._draw.ellipse([v * self._side for v in (x - rx, y - ry, x + rx, y + ry)], fill=fill)

    def line(self, points: list[tuple[float, float]], width: float, fill: Colour = INK) -> None:
        scaled = [(x * self._side, y * self._side) for x, y in points]
        self._draw.line(scaled, fill=fill, width=max(1, round(width * self._side)), joint="curve")

    def box(self, x1: float, y1: float, x2: float, y2: float, fill: Colour) -> None:
        self._draw.rectangle([v * self._side for v in (x1, y1, x2, y2)], fill=fill)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float) -> None:
        turns = np.linspace(start, end, 16)
        self.line([(x + rx * cos(t), y + ry * sin(t)) for t in turns], width)

    def save(self, path: Path) -> None:
        self._picture.resize((self._size, self._size), Image.Resampling.BOX).save(path)


def _face(canvas: _Canvas, x: float, y: float, r: float, look: tuple[float, float], skin: Colour = SKIN) -> None:
    """A head whose pupils are shifted by `look`, in eye radii."""
    canvas.disc(x, y, r, skin)
    for side in (-1, 1):
        ex, ey, er = x + side * 0.42 * r, y - 0.15 * r, 0.3 * r
        canvas.disc(ex, ey, er, WHITE)
        canvas.disc(ex + look[0] * 0.6 * er, ey + look[1] * 0.6 * er, 0.5 * er, INK)


def _box_around(x: float, y: float, rx: float, ry: float) -> list[float]:
    edges = np.clip([x - rx, y - ry, x + rx, y + ry], 0.0, 1.0)
    return [round(float(v), 4) for v in edges]


def _ground(random: np.random.Generator) -> Colour:
    r, g, b = (int(v) for v in random.integers(110, 200, 3))
    return r, g, b


def _looking_at_me(random: np.random.Generator, size: int, which: int) -> tuple[_Canvas, Row]:
    canvas = _Canvas(size, _ground(random))
    x, y, r = random.uniform(0.35, 0.65), random.uniform(0.35, 0.65), random.uniform(0.24, 0.32)
    yes = which % 2 == 1
    turn = random.uniform(0, 2 * pi)
    _face(canvas, x, y, r, (0.0, 0.0) if yes else (cos(turn), sin(turn)))
    return canvas, {"label": "yes" if yes else "no", "boxes": [_box_around(x, y, r, r)]}


def _expression(random: np.random.Generator, size: int, which: int) -> tuple[_Canvas, Row]:
    classes = TASKS["expression"].classes
    label = classes[which % len(classes)]
    canvas = _Canvas(size, _ground(random))
    x, y, r = 0.5 + random.uniform(-0.05, 0.05), 0.5 + random.uniform(-0.05, 0.05), random.uniform(0.36, 0.42)
    _face(canvas, x, y, r, (0.0, 0.0))
    thick, mouth = 0.09 * r, y + 0.5 * r
    # The inner and outer ends of the brows, upwards.
    inner, outer = {"sadness": (0.25, 0.0), "anger": (-0.15, 0.2), "fear": (0.3, 0.15), "surprise": (0.3, 0.3)}.get(
        label, (0.05, 0.05)
    )
    for side in (-1, 1):
        canvas.line([(x + side * 0.2 * r, y - (0.5 + inner) * r), (x + side * 0.65 * r, y - (0.5 + outer) * r)], thick)
    if label in ("happiness", "contempt"):
        canvas.arc(x, mouth - 0.15 * r, 0.45 * r, 0.32 * r, 0.0, pi if label == "happiness" else pi / 2, thick)
    elif label in ("sadness", "anger"):
        canvas.arc(x, mouth + 0.2 * r, 0.45 * r, 0.28 * r, pi, 2 * pi, thick)
    elif label == "surprise":
        canvas.disc(x, mouth, 0.2 * r, INK, 0.26 * r)
    elif label == "fear":
        canvas.disc(x, mouth, 0.4 * r, INK, 0.1 * r)
    elif label == "disgust":
        steps = np.linspace(-0.45, 0.45, 7)
        canvas.line([(x + v * r, mouth + 0.12 * r * (-1) ** k) for k, v in enumerate(steps)], thick)
    else:
        canvas.line([(x - 0.4 * r, mouth), (x + 0.4 * r, mouth)], thick)
    return canvas, {"label": label}


def _gesture(random: np.random.Generator, size: int, which: int) -> tuple[_Canvas, Row]:
    label = list(_HANDS)[which % len(_HANDS)]
    fingers, thumb = _HANDS[label]
    canvas = _Canvas(size, _ground(random))
    x, y, r = 0.5 + random.uniform(-0.06, 0.06), 0.65 + random.uniform(-0.04, 0.04), random.uniform(0.18, 0.22)
    for edge, fill in ((0.025, INK), (0.0, SKIN)):  # a dark outline: the ground may be as light as the hand
        canvas.box(x - 0.5 * r - edge, y, x + 0.5 * r + edge, 1.0, fill)
        canvas.disc(x, y, r + edge, fill)
        for finger in fingers:
            at = x + (finger - 1.5) * 0.5 * r
            tip = (x + (finger - 1.5) * 0.85 * r, y - 2.4 * r - edge)
            canvas.line([(at, y), tip], 0.38 * r + 2 * edge, fill)
        if thumb:
            end = (x - 0.2 * r, y - 1.9 * r - edge) if label == "like" else (x + 1.9 * r + edge, y - 0.7 * r)
            canvas.line([(x, y), end], 0.5 * r + 2 * edge, fill)
    return canvas, {"label": label}


def _relation(random: np.random.Generator, size: int, which: int) -> tuple[_Canvas, Row]:
    classes = TASKS["relation"].classes
    label = classes[which % len(classes)]
    canvas = _Canvas(size, _ground(random))
    apart = {"couple": 0.11, "friends": 0.17, "family": 0.14, "professional": 0.2, "commercial": 0.2}.get(label, 0.34)
    heights = (0.6, 0.34) if label == "family" else (0.56, 0.56)
    suit: Colour = (40, 44, 70)
    shirts = [suit, suit] if label == "professional" else [(200, 70, 60), (70, 110, 200)]
    ground, boxes, hands = 0.94, [], []
    middle = 0.5 + random.uniform(-0.04, 0.04)
    for side, height, shirt in zip((-1, 1), heights, shirts, strict=True):
        x, head = middle + side * apart, 0.2 * height
        canvas.box(x - 0.13 * height, ground - 0.62 * height, x + 0.13 * height, ground, shirt)
        facing = side if label == "no_relation" else -side
        _face(canvas, x, ground - 0.8 * height, head, (float(facing), 0.0))
        hands.append((x, ground - 0.45 * height))
        boxes.append(_box_around(x, ground - 0.5 * height, head, 0.5 * height))
    if label in ("friends", "couple", "family"):
        canvas.line(hands, 0.05, SKIN)
    if label == "couple":
        canvas.disc(middle, 0.15, 0.08, (220, 40, 90))
    if label in ("professional", "commercial"):
        table: Colour = (120, 84, 50) if label == "professional" else (240, 220, 90)
        canvas.box(middle - 0.14, 0.72, middle + 0.14, 0.94, table)
    return canvas, {"label": label, "boxes": boxes}


def _gaze(random: np.random.Generator, size: int, which: int) -> tuple[_Canvas, Row]:
    canvas = _Canvas(size, _ground(random))
    x, y, r = 0.5 + random.uniform(-0.1, 0.1), 0.5 + random.uniform(-0.1, 0.1), 0.16
    first = random.uniform(0, 2 * pi)
    things = [(x + 0.34 * cos(first + k * 2 * pi / 3), y + 0.34 * sin(first + k * 2 * pi / 3)) for k in range(3)]
    colours: list[Colour] = [(200, 60, 50), (60, 150, 70), (60, 90, 200)]
    for at, colour in zip(things, colours, strict=True):
        canvas.disc(*at, 0.06, colour)
    tx, ty = things[which % 3]
    turn = np.arctan2(ty - y, tx - x)
    _face(canvas, x, y, r, (float(cos(turn)), float(sin(turn))))
    canvas.line([(x, y + 0.05 * r), (x + 1.25 * r * cos(turn), y + 1.25 * r * sin(turn))], 0.22 * r)  # the nose
    points = np.clip(np.array([tx, ty]) + random.normal(0, 0.01, (3, 2)), 0, 1).round(4).tolist()
    return canvas, {"gaze": points, "boxes": [_box_around(x, y, r, r)]}


_SCENES: dict[str, Callable[[np.random.Generator, int, int], tuple[_Canvas, Row]]] = {
    "looking_at_me": _looking_at_me,
    "expression": _expression,
    "gesture": _gesture,
    "relation": _relation,
    "gaze": _gaze,
}


def write_scenes(folder: str | Path, examples: int, *, seed: int = 0, size: int = 64) -> tuple[Path, Path]:
    """Render scenes of all five tasks with their manifests.

    Args:
        folder: made, or replaced.
        examples: training examples of each task; a quarter as many are for the test.
        seed: the same seed gives the same files.
        size: pixels a side.

    Returns:
        The training manifest and the test manifest.
    """
    folder = Path(folder)
    random = np.random.Generator(np.random.PCG64(seed))
    with replacing_folder(folder) as scratch:
        (scratch / "images").mkdir()
        for split, count in (("train", examples), ("test", max(examples // 4, 1))):
            rows = []
            for task, draw in _SCENES.items():
                for number in range(count):
                    canvas, truth = draw(random, size, number)
                    image = f"images/{split}-{task}-{number}.png"
                    canvas.save(scratch / image)
                    rows.append({"image": image, "task": task, **truth})
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (scratch / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder / "train.jsonl", folder / "test.jsonl"
