"""Nuisance: setting, colours, camera, body sizes and mirroring, drawn from a stream of their own so that they tell
nothing of the latents.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]
BODY_SHAPES = ("triangle", "circle", "square", "diamond")
INDOOR_KINDS = ("living room", "kitchen", "office", "hallway")
OUTDOOR_KINDS = ("park", "street", "beach", "field")


@dataclass(frozen=True)
class Appearance:
    """How one agent looks.

    Args:
        body: Colour of the body.
        legs: Colour of the legs.
        skin: Colour of face and hands.
        hair: Colour of the hair.
        size: Factor on body size.
        shape: One of BODY_SHAPES, the body in the abstract style.
    """

    body: Colour
    legs: Colour
    skin: Colour
    hair: Colour
    size: float
    shape: str


@dataclass(frozen=True)
class Scene:
    """The nuisance of one clip; lengths in frame widths.

    Args:
        agents: Looks of leader and partner.
        mirrored: Whether left and right are exchanged.
        offset: Where the camera looks, (x, y) from the middle.
        pan: How far it moves over the clip, (x, y).
        zoom: Its magnification.
        zoom_change: Share by which that grows over the clip.
        indoor: Whether the setting is a room.
        expanse: How wide the setting is, 0..1.
        objects: How many things stand about, 0..1.
        kind: The setting's name.
        texture_seed: Seed of the backdrop's details.
    """

    agents: tuple[Appearance, Appearance]
    mirrored: bool
    offset: tuple[float, float]
    pan: tuple[float, float]
    zoom: float
    zoom_change: float
    indoor: bool
    expanse: float
    objects: float
    kind: str
    texture_seed: int


def colour(hue: float, saturation: float, value: float) -> Colour:
    """Return red, green and blue in 0..255 of a hue (any number, in turns), saturation and value (0..1)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw one clip's nuisance, all of it whatever the style, so that both styles share camera and mirroring.

    Args:
        rng: The clip's nuisance stream.

    Returns:
        The scene.
    """
    hue = rng.uniform()
    hues = (hue, hue + rng.uniform(0.3, 0.7))  # the two agents can always be told apart
    shapes = rng.choice(len(BODY_SHAPES), 2, replace=False)
    agents = tuple(
        Appearance(
            body=colour(agent_hue, rng.uniform(0.7, 1.0), rng.uniform(0.55, 0.9)),
            legs=colour(rng.uniform(), rng.uniform(0.1, 0.5), rng.uniform(0.15, 0.35)),
            skin=colour(rng.uniform(0.05, 0.1), rng.uniform(0.25, 0.6), rng.uniform(0.55, 0.98)),
            hair=colour(rng.uniform(0.03, 0.12), rng.uniform(0.3, 0.8), rng.uniform(0.08, 0.5)),
            size=float(rng.uniform(0.94, 1.06)),
            shape=BODY_SHAPES[shape],
        )
        for agent_hue, shape in zip(hues, shapes, strict=True)
    )
    indoor = bool(rng.uniform() < 0.5)
    return Scene(
        agents=(agents[0], agents[1]),
        mirrored=bool(rng.uniform() < 0.5),
        offset=(float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.03, 0.03))),
        pan=(float(rng.uniform(-0.05, 0.05)), float(rng.uniform(-0.02, 0.02))),
        zoom=float(rng.uniform(0.93, 1.05)),
        zoom_change=float(rng.uniform(-0.05, 0.05)),
        indoor=indoor,
        expanse=float(np.clip(rng.beta(1.2, 4) if indoor else rng.beta(4, 2), 0, 1)),
        objects=float(rng.uniform()),
        kind=str(rng.choice(INDOOR_KINDS if indoor else OUTDOOR_KINDS)),
        texture_seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class Camera:
    """Where the camera looks in one frame: centre (x, y) in frame widths, and zoom."""

    x: float
    y: float
    zoom: float


def camera_at(scene: Scene, progress: float) -> Camera:
    """Return the camera `progress` (0..1) of the way through the clip."""
    moved = progress - 0.5
    return Camera(
        scene.offset[0] + scene.pan[0] * moved,
        scene.offset[1] + scene.pan[1] * moved,
        scene.zoom * (1 + scene.zoom_change * moved),
    )
