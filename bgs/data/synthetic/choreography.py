"""What sets one interaction apart from another: a short function each, that changes the stage the latents have set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bgs.data.synthetic.latents import Scenario
from bgs.data.synthetic.motion import EDGE, TAU, Stage, finish, pulses, ramp, set_stage
from bgs.data.synthetic.script import LEADER, PARTNER, Script

NEAR, FAR = 0, 1  # the two arms of an agent


def write_script(scenario: Scenario, rng: np.random.Generator, frames: int, fps: float) -> Script:
    """Turn a scenario into the movement of its two agents.

    Args:
        scenario: Interaction and latents.
        rng: The clip's motion stream.
        frames: Number of frames.
        fps: Frames per second.

    Returns:
        The script, the same whatever style draws it.
    """
    stage = set_stage(scenario, rng, frames, fps)
    CHOREOGRAPHIES[scenario.interaction](stage)
    return finish(stage)


def _argue(stage: Stage) -> None:
    """Pointing and leaning in, in turns; the other draws back."""
    script, thrust = stage.script, stage.turn * (0.5 + 0.5 * pulses(stage.phase, 2.0))
    script.arms[:, :, NEAR] += 0.6 * thrust
    script.bend[:, :, NEAR] -= 0.8 * thrust
    script.lean += 0.4 * thrust - 0.2 * stage.turn[:, ::-1]
    script.x += 0.07 * stage.vigour * (thrust - thrust[:, ::-1]) * np.array([1, -1])


def _block(stage: Stage) -> None:
    """The partner tries to pass, again and again; the leader stands in the way with arms spread."""
    script = stage.script
    attempt = pulses(TAU * (0.35 + 0.5 * stage.scenario["arousal"]) * stage.time + stage.rng.uniform(0, TAU), 1.5)
    dodge = 0.16 * np.sin(TAU * (0.3 + 0.4 * stage.scenario["arousal"]) * stage.time + stage.rng.uniform(0, TAU))
    follow = 0.4 + 0.6 * stage.scenario["joint_action"]
    script.z += np.stack([follow * dodge, dodge], 1)
    script.x[:, PARTNER] += 0.12 - 0.16 * attempt
    script.arms[:, LEADER] += np.array([1.6, -1.6])
    script.bend[:, LEADER] = 0.05
    script.lean[:, PARTNER] += 0.35 * attempt - 0.1
    script.swing[:, PARTNER] += 0.1


def _circle(stage: Stage, radius: float, turns_per_second: float) -> None:
    """Place both on a loop, the leader behind the partner by the gap between them."""
    angle = TAU * turns_per_second * stage.time + stage.rng.uniform(0, TAU)
    behind = 2 * np.arcsin(np.clip(stage.gap / (2 * radius), 0, 0.9))
    path = np.stack([angle - behind, angle], 1)
    stage.script.x += radius * np.cos(path)
    stage.script.z += 0.75 * radius * np.sin(path)
    stage.placed = True


def _pursue(stage: Stage) -> None:
    """The pursuer looks ahead; the pursued looks back only as far as facingness is high."""
    facing = stage.scenario["facingness"]
    stage.facing[:, LEADER] = 0.75 + 0.25 * facing
    stage.facing[:, PARTNER] = np.clip(1.4 * facing - 0.4, 0, 1)


def _chase(stage: Stage) -> None:
    """Running in a loop, one after the other, arms and legs at full swing."""
    _circle(stage, 0.29, 0.12 + 0.3 * stage.scenario["arousal"])
    _pursue(stage)
    stage.script.swing += 0.16
    stage.script.lean += 0.3
    stage.script.bend += 1.0
    stage.script.arms[:, LEADER, NEAR] += 0.9


def _comfort(stage: Stage) -> None:
    """The partner is bowed down; the leader holds them, patting and swaying."""
    script = stage.script
    script.crouch[:, PARTNER] += 0.45
    script.lean[:, PARTNER] += 0.45
    script.lean[:, LEADER] += 0.2
    script.smile[:, PARTNER] -= 0.9 * (1 - ramp(stage.progress, 0.4, 1.0))
    script.reach[:, LEADER] = np.array([0.9, 0.8])
    script.reach[:, LEADER, NEAR] -= 0.35 * pulses(TAU * 1.2 * stage.time, 1.0)
    script.meet[:] = 1.0
    stage.centre += 0.03 * np.sin(TAU * 0.4 * stage.time)


def _dance(stage: Stage) -> None:
    """Large sways from side to side, arms up in alternation, a turn on the spot."""
    script = stage.script
    script.x += 0.09 * stage.vigour * np.sin(stage.phase / 2)
    script.arms += 1.5 + 0.9 * np.sin(stage.phase / 2)[:, :, None] * np.array([1, -1])
    script.lean += 0.25 * np.sin(stage.phase / 2)
    script.yaw += 0.9 * np.sin(stage.phase / 4)
    script.hop += 0.03 * np.abs(np.sin(stage.phase / 2))
    script.swing += 0.08


def _fight(stage: Stage) -> None:
    """Blows in turns: a lunge with a straight arm, and the other thrown back."""
    script = stage.script
    blow = np.stack([pulses(stage.phase[:, LEADER], 4.0), pulses(stage.phase[:, LEADER] + np.pi, 4.0)], 1)
    script.arms += 1.3
    script.bend += 1.6 - 1.6 * blow[:, :, None] * np.array([1.0, 0.2])
    script.arms[:, :, NEAR] += 0.3 * blow
    script.lean += 0.5 * blow - 0.7 * blow[:, ::-1]
    script.x += 0.08 * (blow - 1.2 * blow[:, ::-1]) * np.array([1, -1])
    script.swing += 0.12


def _follow(stage: Stage) -> None:
    """Walking across the scene, one behind the other."""
    _pursue(stage)
    room = 2 * EDGE - stage.gap.mean()  # as far as both stay in sight
    walked = room * (0.35 + 0.65 * stage.scenario["arousal"]) * (stage.progress - 0.5)
    drift = TAU * 0.25 * stage.time + stage.rng.uniform(0, TAU)
    stage.centre += walked
    stage.script.z += 0.05 * np.sin(np.stack([drift - 0.4, drift], 1))
    stage.script.swing += 0.2


def _greet(stage: Stage) -> None:
    """Coming closer, one arm waving, then hands that meet."""
    script, arrival = stage.script, ramp(stage.progress, 0.05, 0.55)
    stage.gap += 0.16 * (1 - arrival) - 0.03
    wave = 1 - ramp(stage.progress, 0.45, 0.75)
    script.arms[:, :, NEAR] += wave[:, None] * (2.4 + 0.45 * np.sin(TAU * 2.2 * stage.time)[:, None])
    script.reach[:, :, FAR] = ramp(stage.progress, 0.5, 0.75)[:, None] * (
        0.8 + 0.2 * np.sin(TAU * 2 * stage.time)[:, None]
    )
    script.swing += 0.18 * (1 - arrival)[:, None]


def _help(stage: Stage) -> None:
    """The partner is down; the leader comes, bends, takes hold and raises them."""
    script = stage.script
    raised = ramp(stage.progress, 0.35, 0.85)
    arrival = ramp(stage.progress, 0.0, 0.35)
    stage.gap += 0.02
    script.x[:, LEADER] -= 0.2 * (1 - arrival)
    script.swing[:, LEADER] += 0.2 * (1 - arrival)
    script.crouch[:, PARTNER] += 0.95 * (1 - raised)
    script.lean[:, PARTNER] += 0.5 * (1 - raised)
    script.lean[:, LEADER] += 0.6 * arrival * (1 - raised)
    script.crouch[:, LEADER] += 0.3 * arrival * (1 - raised)
    script.reach[:] = (arrival * (1 - 0.5 * ramp(stage.progress, 0.85, 1.0)))[:, None, None] * np.array(
        [[1.0, 0.9], [0.0, 0.8]]
    )
    script.meet[:] = 0.6
    script.smile[:, PARTNER] -= 0.8 * (1 - raised)


def _ignore(stage: Stage) -> None:
    """Each for themselves: standing, shifting weight, looking at something held in the hand."""
    script = stage.script
    script.arms[:, LEADER, NEAR] += 1.1
    script.bend[:, LEADER, NEAR] += 0.9
    script.lean[:, PARTNER] += 0.05 * np.sin(TAU * 0.3 * stage.time)
    script.arms[:, PARTNER] += 0.1
    stage.facing -= 0.05


def _play(stage: Stage) -> None:
    """Jumping with arms thrown up."""
    script, bounce = stage.script, np.abs(np.sin(stage.phase / 2))
    script.hop += (0.05 + 0.12 * stage.vigour) * bounce
    script.arms += 0.9 + 1.7 * bounce[:, :, None]
    script.crouch += 0.3 * (1 - bounce) ** 3
    script.swing += 0.08
    stage.centre += 0.06 * np.sin(TAU * 0.35 * stage.time + stage.rng.uniform(0, TAU))


def _teach(stage: Stage) -> None:
    """The leader points out something above with slow sweeps; the partner looks on and nods."""
    script = stage.script
    sweep = np.sin(TAU * (0.25 + 0.4 * stage.scenario["arousal"]) * stage.time + stage.rng.uniform(0, TAU))
    script.arms[:, LEADER, FAR] += 2.35 + 0.4 * sweep
    script.bend[:, LEADER, FAR] = 0.05
    script.lean[:, PARTNER] += 0.22 * pulses(TAU * 0.9 * stage.time, 2.0)
    script.arms[:, PARTNER] *= 0.3
    stage.turn[:] = stage.turn * np.array([0.4, 0.35]) + np.array([0.6, 0.0])


CHOREOGRAPHIES: dict[str, Callable[[Stage], None]] = {
    "argue": _argue,
    "block": _block,
    "chase": _chase,
    "comfort": _comfort,
    "dance": _dance,
    "fight": _fight,
    "follow": _follow,
    "greet": _greet,
    "help": _help,
    "ignore": _ignore,
    "play": _play,
    "teach": _teach,
}
