"""What two agents do, frame by frame: motion writes it as a script, and either style draws the script."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEADER, PARTNER = 0, 1


@dataclass(frozen=True)
class Pose:
    """One agent in one frame: a `Script` at one place. `arms`, `bend` and `reach` hold a value for each arm."""

    x: float
    z: float
    yaw: float
    hop: float
    lean: float
    crouch: float
    stride: float
    swing: float
    size: float
    talk: float
    smile: float
    arms: tuple[float, float]
    bend: tuple[float, float]
    reach: tuple[float, float]
    meet: float


@dataclass
class Script:
    """Everything the two agents do, as arrays (T, 2) over frames and agents, in frame widths and radians.

    Args:
        x: Place, to the right of the middle of the scene.
        z: Place, towards the viewer.
        yaw: Heading in the plane of x and z: 0 to the right, pi/2 towards the viewer.
        hop: Height over the ground.
        lean: Forward tilt of the torso.
        crouch: 0 standing, 1 down.
        stride: Phase of the legs.
        swing: How far the legs swing, in body heights.
        size: Factor on body size.
        talk: How far the mouth is open, 0..1.
        smile: -1 (a scowl) to 1.
        arms: (T, 2, 2), for each arm the upper arm's angle: 0 hanging, pi/2 straight ahead, pi overhead.
        bend: (T, 2, 2), for each arm the elbow's angle.
        reach: (T, 2, 2), for each arm how far the hand gives up these angles and reaches for the other, 0..1.
        meet: (T,), where reaching hands go: 0 midway between the agents, 1 onto the other's chest.
    """

    x: Floats
    z: Floats
    yaw: Floats
    hop: Floats
    lean: Floats
    crouch: Floats
    stride: Floats
    swing: Floats
    size: Floats
    talk: Floats
    smile: Floats
    arms: Floats
    bend: Floats
    reach: Floats
    meet: Floats

    def __len__(self) -> int:
        return len(self.x)

    def pose(self, frame: int, agent: int) -> Pose:
        """Return one agent's pose in one frame."""
        values = {name: array[frame, agent].tolist() for name, array in vars(self).items() if name != "meet"}
        for name in ("arms", "bend", "reach"):
            values[name] = tuple(values[name])
        return Pose(**values, meet=float(self.meet[frame]))
