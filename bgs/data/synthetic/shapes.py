"""The second style: abstract shapes with an eye, seen from above on a plain ground, after Heider and Simmel (1944)."""

from __future__ import annotations

from math import cos, pi, sin

from PIL import ImageDraw

from bgs.data.synthetic.scene import Appearance, Camera, Colour
from bgs.data.synthetic.script import Pose

RADIUS = 0.115  # of a shape, in frame widths
SPREAD = 1.1  # distances are this much longer than between figures, whose bodies are narrower
INK: Colour = (28, 26, 32)
WHITE: Colour = (250, 250, 250)

# Corners of the bodies: directions from the heading in radians, and how far out they lie, in radii.
_CORNERS: dict[str, tuple[tuple[float, ...], float]] = {
    "triangle": ((0.0, 2.25, -2.25), 1.2),
    "square": (tuple(pi * turn for turn in (0.25, 0.75, 1.25, 1.75)), 1.1),
    "diamond": (tuple(pi * turn for turn in (0.0, 0.5, 1.0, 1.5)), 1.15),
    "circle": (tuple(pi * turn / 16 for turn in range(32)), 1.0),
}


def draw_shapes(
    draw: ImageDraw.ImageDraw,
    poses: tuple[Pose, Pose],
    looks: tuple[Appearance, Appearance],
    camera: Camera,
    pixels: int,
) -> None:
    """Draw both shapes of one frame, the one farther down last.

    Args:
        draw: Where to draw.
        poses: Poses of leader and partner.
        looks: Their looks.
        camera: The camera.
        pixels: Width of the picture.
    """
    scale = pixels * camera.zoom
    for pose, look in sorted(zip(poses, looks, strict=True), key=lambda agent: agent[0].z):
        # What limbs do the whole body does: raised arms swell it, a crouch shrinks it, steps rock it, a lean shifts it.
        swell = 1 + 0.14 * sin(sum(pose.arms) / 2) - 0.28 * pose.crouch
        radius = scale * RADIUS * look.size * pose.size * swell
        angle = pose.yaw + 0.9 * pose.swing * sin(pose.stride)
        shift = 0.35 * radius * pose.lean
        x = pixels / 2 + scale * (SPREAD * pose.x - camera.x) + shift * cos(pose.yaw)
        y = pixels / 2 + scale * (SPREAD * pose.z - 1.2 * pose.hop - camera.y) + shift * sin(pose.yaw)
        turns, stretch = _CORNERS[look.shape]
        for length, fill in ((1.12 * stretch * radius, INK), (stretch * radius, look.body)):
            corners = [(x + length * cos(angle + turn), y + length * sin(angle + turn)) for turn in turns]
            draw.polygon(corners, fill=fill)
        # The eye is at the front, and opens wide with speech.
        _draw_disc(draw, x, y, angle, 0.5 * radius, (0.34 + 0.24 * pose.talk) * radius, WHITE)
        _draw_disc(draw, x, y, angle, 0.62 * radius, 0.17 * radius, INK)


def _draw_disc(
    draw: ImageDraw.ImageDraw, x: float, y: float, angle: float, ahead: float, radius: float, fill: Colour
) -> None:
    """Draw a disc that lies some way ahead of a point."""
    x, y = x + ahead * cos(angle), y + ahead * sin(angle)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
