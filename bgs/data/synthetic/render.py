"""From a script and a scene to frames: the one place that knows both styles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from bgs.data.synthetic.backdrop import MARGIN, plain_backdrop, textured_backdrop, view
from bgs.data.synthetic.figures import draw_figures
from bgs.data.synthetic.scene import Scene, camera_at
from bgs.data.synthetic.script import LEADER, PARTNER, Script
from bgs.data.synthetic.shapes import draw_shapes

SUPERSAMPLING = 2  # drawn this much larger, then averaged down: edges come out smooth
STYLES = {"figures": (textured_backdrop, draw_figures), "shapes": (plain_backdrop, draw_shapes)}


def render(script: Script, scene: Scene, style: str, size: int) -> NDArray[np.uint8]:
    """Draw a clip.

    Args:
        script: What the agents do.
        scene: The clip's nuisance.
        style: "figures" or "shapes".
        size: Width and height of a frame in pixels.

    Returns:
        (T, size, size, 3) uint8 frames.
    """
    make_backdrop, draw_agents = STYLES[style]
    pixels = size * SUPERSAMPLING
    backdrop = make_backdrop(scene, round(pixels * MARGIN))
    frames = np.empty((len(script), size, size, 3), dtype=np.uint8)
    for frame in range(len(script)):
        camera = camera_at(scene, frame / (len(script) - 1))
        picture = view(backdrop, camera, pixels)
        poses = script.pose(frame, LEADER), script.pose(frame, PARTNER)
        draw_agents(ImageDraw.Draw(picture), poses, scene.agents, camera, pixels)
        frames[frame] = np.asarray(picture.reduce(SUPERSAMPLING))
    return np.ascontiguousarray(frames[:, :, ::-1]) if scene.mirrored else frames
