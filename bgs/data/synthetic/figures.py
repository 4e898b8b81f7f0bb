"""The first style: articulated figures, seen from the side."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, pi, sin, sqrt

import numpy as np
from PIL import ImageDraw

from bgs.data.synthetic.scene import Appearance, Camera, Colour
from bgs.data.synthetic.script import Pose

GROUND = 0.87  # height of the line the feet stand on, in the frame from the top
HEIGHT = 0.46  # of a standing figure, in frame widths
DEPTH_RISE, DEPTH_GROWTH = 0.3, 0.5  # how nearness (z) moves a figure down the frame and enlarges it
# In body heights: a segment of a leg and of an arm, the torso, the neck, the head's radius; then widths.
LEG, ARM, TORSO, NECK, HEAD = 0.21, 0.17, 0.3, 0.03, 0.135
LIMB_WIDTH, TORSO_WIDTH, FOOT, HAND = 0.08, 0.17, 0.06, 0.052
INK: Colour = (28, 26, 32)
LIPS: Colour = (120, 20, 30)

Point = tuple[float, float]


def draw_figures(
    draw: ImageDraw.ImageDraw,
    poses: tuple[Pose, Pose],
    looks: tuple[Appearance, Appearance],
    camera: Camera,
    pixels: int,
) -> None:
    """Draw both figures of one frame, the farther one first.

    Args:
        draw: Where to draw.
        poses: Poses of leader and partner.
        looks: Their looks.
        camera: The camera.
        pixels: Width of the picture.
    """
    first, second = (_Figure(pose, look, camera, pixels) for pose, look in zip(poses, looks, strict=True))
    order = ((first, second), (second, first)) if first.pose.z <= second.pose.z else ((second, first), (first, second))
    for figure, other in order:
        figure.draw(draw, other)


class _Figure:
    """One figure in one frame: its joints in pixels, and the drawing of them.

    `heading` is how far it looks to the right (1) or the left (-1), `unit` the body's height.
    """

    def __init__(self, pose: Pose, look: Appearance, camera: Camera, pixels: int) -> None:
        self.pose, self.look, self.heading = pose, look, cos(pose.yaw)
        self.frontal = 1 - abs(self.heading)
        self.unit = pixels * camera.zoom * HEIGHT * look.size * pose.size * (1 + DEPTH_GROWTH * pose.z)
        height = GROUND - 0.5 + DEPTH_RISE * pose.z - pose.hop
        self.ground = (
            pixels * (0.5 + camera.zoom * (pose.x - camera.x)),
            pixels * (0.5 + camera.zoom * (height - camera.y)),
        )
        sideways = max(-1.0, min(1.0, 1.35 * self.heading))  # little shows of a lean towards the viewer
        standing = 0.97 * 2 * LEG * (1 - 0.62 * pose.crouch)
        self.hip = self._offset(self.ground, -0.1 * sideways * pose.crouch, -standing)
        tilt = sideways * pose.lean
        self.spine = (sin(tilt), -cos(tilt))
        self.chest, self.shoulder, self.head = (
            self._offset(self.hip, self.spine[0] * length, self.spine[1] * length)
            for length in (0.75 * TORSO, TORSO, TORSO + NECK + HEAD)
        )

    def _offset(self, start: Point, right: float, down: float) -> Point:
        """Return the point that lies this far from another, in body heights."""
        return start[0] + right * self.unit, start[1] + down * self.unit

    def draw(self, draw: ImageDraw.ImageDraw, other: _Figure) -> None:
        """Draw the figure, the far limbs first; its hands may reach for the other."""
        midway = _between(self.chest, other.chest, 0.5)
        target = _between(midway, other.chest, self.pose.meet)
        self._draw_arm(draw, 1, target, _shade(self.look.body, 0.62))
        self._draw_leg(draw, 1, _shade(self.look.legs, 0.7))
        self._draw_leg(draw, 0, self.look.legs)
        width = (TORSO_WIDTH + 0.05 * self.frontal) * self.unit
        _draw_limb(draw, (self.hip, self.shoulder), width, self.look.body)
        self._draw_head(draw)
        self._draw_arm(draw, 0, target, _shade(self.look.body, 0.85))

    def _draw_leg(self, draw: ImageDraw.ImageDraw, leg: int, colour: Colour) -> None:
        phase, side = self.pose.stride + pi * leg, 1 - 2 * leg
        spread = side * (0.05 + 0.05 * self.frontal)
        swing = self.pose.swing * self.heading
        lift = 0.5 * self.pose.swing * max(0.0, cos(phase))
        hip = self._offset(self.hip, 0.4 * spread, 0)
        aim = self._offset(self.ground, spread + swing * sin(phase), -lift)
        knee, foot = _two_segments(hip, aim, LEG * self.unit, -1 if self.heading >= 0 else 1)
        _draw_limb(draw, (hip, knee, foot), LIMB_WIDTH * self.unit, colour)
        _draw_limb(draw, (foot, self._offset(foot, FOOT * self.heading, 0)), FOOT * self.unit, INK)

    def _draw_arm(self, draw: ImageDraw.ImageDraw, arm: int, target: Point, colour: Colour) -> None:
        side = 1 - 2 * arm
        shoulder = self._offset(self.shoulder, 0.07 * side * self.frontal, 0.03)
        outward = ARM * (self.heading + side * self.frontal)  # facing the viewer, arms open sideways
        angle = self.pose.arms[arm]
        elbow = self._offset(shoulder, outward * sin(angle), ARM * cos(angle))
        angle += self.pose.bend[arm]
        hand = self._offset(elbow, outward * sin(angle), ARM * cos(angle))
        if reach := self.pose.reach[arm]:
            reaching = _two_segments(shoulder, target, ARM * self.unit, 1 if target[0] > shoulder[0] else -1)
            elbow, hand = _between(elbow, reaching[0], reach), _between(hand, reaching[1], reach)
        _draw_limb(draw, (shoulder, elbow, hand), LIMB_WIDTH * self.unit, colour)
        _draw_disc(draw, hand, HAND * self.unit, self.look.skin)

    def _draw_head(self, draw: ImageDraw.ImageDraw) -> None:
        radius = HEAD * self.unit
        _draw_disc(draw, self.head, 1.12 * radius, INK)
        _draw_disc(draw, self.head, radius, self.look.hair)
        seen = max(0.0, min(1.0, 1.6 + 2 * sin(self.pose.yaw)))  # of the face: nothing with the back to the viewer
        if not seen:
            return
        # The face is a disc that slides over the hair with the heading, and its features slide over the face.
        x, y = self.head[0] + 0.28 * radius * self.heading, self.head[1] + 0.1 * radius
        _draw_disc(draw, (x, y), 0.86 * radius * seen, self.look.skin)
        self._draw_features(draw, (x + 0.34 * radius * self.heading, y - 0.1 * radius), radius * seen)

    def _draw_features(self, draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
        smile, (x, y) = self.pose.smile, centre
        thin = max(1, round(0.14 * radius))
        for side in (-1, 1):
            eye_x, eye_y = x + side * radius * (0.22 + 0.12 * self.frontal), y - 0.08 * radius
            _draw_disc(draw, (eye_x, eye_y), 0.13 * radius, INK)
            if smile < 0:  # brows drawn down to the middle
                inner = (eye_x - 0.2 * side * radius, eye_y - 0.2 * radius)
                outer = (eye_x + 0.2 * side * radius, eye_y - (0.2 - 0.35 * smile) * radius)
                draw.line((inner, outer), fill=INK, width=thin)
        y, half = y + 0.46 * radius, radius * (0.25 + 0.11 * self.frontal)
        steps = np.linspace(-1, 1, 7).tolist()
        curve = [(x + half * step, y + 0.24 * radius * smile * (0.5 - step * step)) for step in steps]
        draw.line(curve, fill=LIPS, width=thin)
        open_height = 0.3 * radius * self.pose.talk
        if open_height >= 1:
            draw.ellipse((x - 0.7 * half, y - open_height, x + 0.7 * half, y + open_height), fill=LIPS)


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (round(channel * factor) for channel in colour)
    return red, green, blue


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _two_segments(start: Point, aim: Point, length: float, side: int) -> tuple[Point, Point]:
    """Return the joint and the end of two segments of `length` from `start` to `aim`, or as far as they go.

    `side` says to which hand the joint is out: 1 to the right of the way as the picture shows it, -1 to the left.
    """
    distance = max(hypot(aim[0] - start[0], aim[1] - start[1]), 1e-6)
    reach = min(distance, 1.98 * length)  # never quite stretched
    along = ((aim[0] - start[0]) / distance, (aim[1] - start[1]) / distance)
    out = side * sqrt(length**2 - reach**2 / 4)
    joint = (start[0] + along[0] * reach / 2 - along[1] * out, start[1] + along[1] * reach / 2 + along[0] * out)
    return joint, (start[0] + along[0] * reach, start[1] + along[1] * reach)


def _draw_disc(draw: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    draw.ellipse((centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius), fill=colour)


def _draw_limb(draw: ImageDraw.ImageDraw, joints: Sequence[Point], width: float, colour: Colour) -> None:
    """Draw a chain of segments with round joints and a dark edge."""
    for edge, fill in ((0.16 * width + 1, INK), (0.0, colour)):
        draw.line(list(joints), fill=fill, width=max(1, round(width + 2 * edge)))
        for joint in joints:
            _draw_disc(draw, joint, width / 2 + edge, fill)
