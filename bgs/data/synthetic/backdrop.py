"""What agents stand in front of: a room or a landscape for figures, a plain ground for shapes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bgs.data.synthetic.scene import Camera, Colour, Scene, colour

MARGIN = 1.4  # a backdrop is this much wider than the frame, so that the camera can move
THINGS = 5  # that stand about where `objects` is 1

Box = tuple[float, float, float, float]


def plain_backdrop(scene: Scene, size: int) -> Image.Image:
    """Return a backdrop of one pale colour.

    Args:
        scene: The clip's nuisance.
        size: Width and height in pixels.
    """
    rng = np.random.default_rng(scene.texture_seed)
    return Image.new("RGB", (size, size), colour(rng.uniform(), rng.uniform(0.02, 0.2), rng.uniform(0.85, 1.0)))


def textured_backdrop(scene: Scene, size: int) -> Image.Image:
    """Return a backdrop of a room or a landscape, pale and soft, so that agents stand out from it.

    Args:
        scene: The clip's nuisance.
        size: Width and height in pixels.
    """
    rng = np.random.default_rng(scene.texture_seed)
    canvas = _Canvas(size)
    (_paint_room if scene.indoor else _paint_landscape)(canvas, scene, rng)
    blurred = canvas.image.filter(ImageFilter.GaussianBlur(size / 400))
    pixels = np.asarray(blurred, dtype=np.float32)
    pixels = pixels + _grain(rng, size, 6, 9.0) + _grain(rng, size, max(2, size // 6), 7.0)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def view(backdrop: Image.Image, camera: Camera, size: int) -> Image.Image:
    """Return what a camera sees of a backdrop, `size` pixels square."""
    width = backdrop.width / MARGIN / camera.zoom
    left = (backdrop.width - width) / 2 + camera.x * width
    top = (backdrop.height - width) / 2 + camera.y * width
    box = (left, top, left + width, top + width)
    return backdrop.resize((size, size), Image.Resampling.BILINEAR, box=box)


class _Canvas:
    """A picture drawn on in shares of its width: boxes are (left, top, right, bottom) in 0..1."""

    def __init__(self, size: int) -> None:
        self.image = Image.new("RGB", (size, size))
        self._draw, self._size = ImageDraw.Draw(self.image), size

    def _pixels(self, box: Box) -> tuple[float, ...]:
        return tuple(share * self._size for share in box)

    def _width(self, share: float) -> int:
        return max(1, round(share * self._size))

    def rectangle(self, box: Box, fill: Colour, outline: Colour | None = None) -> None:
        self._draw.rectangle(self._pixels(box), fill=fill, outline=outline, width=self._width(0.008))

    def ellipse(self, box: Box, fill: Colour) -> None:
        self._draw.ellipse(self._pixels(box), fill=fill)

    def line(self, box: Box, fill: Colour) -> None:
        self._draw.line(self._pixels(box), fill=fill, width=self._width(0.006))


def _grain(rng: np.random.Generator, size: int, cells: int, strength: float) -> np.ndarray:
    """Return smooth noise (size, size, 1) around 0, with `cells` blobs to a side."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return strength * np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))[:, :, None]


def _places(rng: np.random.Generator, number: int, *ranges: tuple[float, float]) -> Iterator[list[float]]:
    """Yield, `number` times, a random value of each range."""
    low, high = np.array(ranges).T
    for _ in range(number):
        yield rng.uniform(low, high).tolist()


def _paint_room(canvas: _Canvas, scene: Scene, rng: np.random.Generator) -> None:
    """Wall with a pattern, floor with boards, and furniture."""
    horizon = 0.72 - 0.12 * scene.expanse
    hue, wall, floor_hue, floor = rng.uniform([0.0, 0.78, 0.05, 0.55], [1.0, 0.95, 0.15, 0.75]).tolist()
    canvas.rectangle((0, 0, 1, 1), colour(hue, 0.15, wall))
    _paper_wall(canvas, colour(hue, 0.2, wall - 0.06), horizon, rng)
    canvas.rectangle((0, horizon, 1, 1), colour(floor_hue, 0.25, floor))
    for board in np.linspace(-2, 2, 13).tolist():
        canvas.line((0.5 + 0.5 * board, horizon, 0.5 + 1.3 * board, 1), colour(floor_hue, 0.25, floor - 0.08))
    canvas.rectangle((0, horizon - 0.015, 1, horizon), colour(hue, 0.1, 0.97))
    ranges = ((0.05, 0.85), (0.1, 0.2), (0.0, 1.0), (0.0, 1.0), (0.15, 0.4), (0.55, 0.8))
    for left, width, height, *shade in _places(rng, round(THINGS * scene.objects), *ranges):
        if rng.uniform() < 0.5:  # a picture or window
            top = 0.15 + 0.15 * height
            canvas.rectangle((left, top, left + width, top + 0.8 * width), colour(*shade), colour(hue, 0.1, 0.45))
        else:  # a shelf or table
            top = horizon - 0.1 - 0.2 * height
            canvas.rectangle((left, top, left + width, horizon + 0.03), colour(*shade))
            canvas.rectangle((left, top, left + width, top + 0.02), colour(hue, 0.2, 0.5))


def _paper_wall(canvas: _Canvas, tone: Colour, horizon: float, rng: np.random.Generator) -> None:
    """Stripes, panels or dots down to the horizon."""
    count, pattern = int(rng.integers(7, 16)), int(rng.integers(3))
    step = 1 / count
    for index in range(count):
        at = index * step
        if pattern == 0:
            canvas.rectangle((at, 0, at + 0.45 * step, horizon), tone)
        elif pattern == 1:
            canvas.rectangle((0, at, 1, at + 0.3 * step), tone)
        else:
            for row in range(int(horizon / step) + 1):
                left, top = at + 0.5 * (row % 2) * step, row * step
                canvas.ellipse((left, top, left + 0.4 * step, top + 0.4 * step), tone)


def _paint_landscape(canvas: _Canvas, scene: Scene, rng: np.random.Generator) -> None:
    """Sky, hills or houses far off, ground, trees and stones."""
    horizon, street = 0.72 - 0.2 * scene.expanse, scene.kind == "street"
    sky = rng.uniform(0.5, 0.62)
    for top in np.linspace(0, horizon, 64, endpoint=False).tolist():
        canvas.rectangle((0, top, 1, horizon), colour(sky, 0.32 - 0.38 * top, 0.96))
    for left, top, width in _places(rng, int(rng.integers(0, 4)), (0.0, 1.0), (0.1, 0.35), (0.08, 0.2)):
        canvas.ellipse((left, top, left + width, top + 0.35 * width), (250, 250, 252))
    ranges = ((-0.1, 1.0), (0.1, 0.35), (0.05, 0.2), (0.0, 1.0), (0.65, 0.85))
    for left, width, height, hue, value in _places(rng, int(rng.integers(3, 8)), *ranges):
        height *= 1.3 - scene.expanse
        if street:
            canvas.rectangle((left, horizon - 1.6 * height, left + 0.6 * width, horizon), colour(hue, 0.12, value))
        else:
            canvas.ellipse(
                (left, horizon - height, left + width, horizon + height), colour(0.25 + 0.15 * hue, 0.2, value)
            )
    hue = {"beach": 0.12, "street": 0.6}.get(scene.kind, rng.uniform(0.2, 0.32))
    saturation = 0.08 if street else 0.32
    canvas.rectangle((0, horizon, 1, 1), colour(hue, saturation, rng.uniform(0.62, 0.82)))
    for left, depth, value in _places(rng, 60, (0.0, 1.0), (0.0, 1.0), (0.52, 0.85)):  # tufts or cracks
        top = horizon + depth**1.5 * (1 - horizon)
        canvas.line((left, top, left + 0.03, top - 0.004), colour(hue, saturation, value))
    ranges = ((0.02, 0.95), (0.0, 0.05), (0.12, 0.3), (0.22, 0.36), (0.5, 0.7))
    for x, nearness, height, hue, value in _places(rng, round(THINGS * scene.objects), *ranges):
        base = horizon + nearness
        if rng.uniform() < 0.6:  # a tree
            canvas.rectangle((x - 0.01, base - height, x + 0.01, base), colour(0.08, 0.35, 0.5))
            crown = (x - 0.35 * height, base - 1.3 * height, x + 0.35 * height, base - 0.5 * height)
            canvas.ellipse(crown, colour(hue, 0.35, value))
        else:  # a stone or bush
            mound = (x - 0.4 * height, base - 0.35 * height, x + 0.4 * height, base + 0.1 * height)
            canvas.ellipse(mound, colour(2 * hue - 0.3, 0.15, value))
