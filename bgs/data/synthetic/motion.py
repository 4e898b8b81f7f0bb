"""How the latents move two agents, whatever their interaction. What comes out is a script that both styles draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bgs.data.synthetic.latents import Scenario
from bgs.data.synthetic.script import LEADER, PARTNER, Floats, Script

TAU = 2 * np.pi
MIN_SEPARATION, MAX_SEPARATION = 0.15, 0.55  # of the frame's width, for agent_distance 0 and 1
EDGE = 0.43  # agents keep this close to the middle of the scene, in frame widths
FULL_TURN_AWAY = 2.7  # radians, at facingness 0


@dataclass
class Stage:
    """A script in the making, with the signals that choreographies share.

    Args:
        scenario: Interaction and latents.
        rng: The clip's motion stream; it decides phases, never an amplitude that a latent sets.
        time: (T,) seconds.
        progress: (T,) 0..1 over the clip.
        phase: (T, 2) phases of the agents' bodies in radians, alike as far as joint_action is high.
        beat: (T, 2) their oscillations, -1..1.
        turn: (T, 2) how far each holds the floor, 0..1.
        gap: (T,) distance between the agents, in frame widths.
        centre: (T,) x of the point between them.
        facing: (T, 2) how far each is turned to the other, 0..1.
        script: The script so far.
        placed: Whether the choreography has placed the agents itself, rather than by gap and centre.
    """

    scenario: Scenario
    rng: np.random.Generator
    time: Floats
    progress: Floats
    phase: Floats
    beat: Floats
    turn: Floats
    gap: Floats
    centre: Floats
    facing: Floats
    script: Script
    placed: bool = False

    @property
    def vigour(self) -> float:
        """Amplitude of movement, set by arousal."""
        return 0.12 + 0.88 * self.scenario["arousal"]


def ramp(signal: Floats, start: float, stop: float) -> Floats:
    """Return a smooth step of `signal` from 0 at `start` to 1 at `stop`."""
    unit: Floats = np.clip((signal - start) / (stop - start), 0.0, 1.0)
    return unit * unit * (3 - 2 * unit)


def pulses(phase: Floats, sharpness: float) -> Floats:
    """Return a train of bumps in 0..1, one per turn of `phase`; a higher sharpness makes them shorter."""
    return (0.5 + 0.5 * np.cos(phase)) ** sharpness


def set_stage(scenario: Scenario, rng: np.random.Generator, frames: int, fps: float) -> Stage:
    """Prepare the signals that follow from the latents alone, and an empty script.

    Args:
        scenario: Interaction and latents.
        rng: The clip's motion stream.
        frames: Number of frames, at least 2.
        fps: Frames per second.

    Returns:
        A stage that a choreography then changes and `finish` turns into a script.
    """
    time = np.arange(frames) / fps
    arousal, joint = scenario["arousal"], scenario["joint_action"]
    tempo = 0.55 + 1.9 * arousal  # steps per second
    lead = TAU * tempo * time + rng.uniform(0, TAU)
    own = TAU * tempo * rng.uniform(0.65, 0.8) * time + rng.uniform(0, TAU)
    phase = np.stack([lead, lead + (1 - joint) * ((own - lead + np.pi) % TAU - np.pi)], axis=1)
    beat = np.stack([np.sin(lead), joint * np.sin(lead) + (1 - joint) * np.sin(own)], axis=1)
    floor = np.sin(TAU * (0.45 + 0.35 * arousal) * time + rng.uniform(0, TAU))

    names = ("x", "z", "yaw", "hop", "lean", "crouch", "swing", "talk")
    script = Script(
        **{name: np.zeros((frames, 2)) for name in names},
        stride=phase.copy(),
        size=np.ones((frames, 2)),
        smile=np.full((frames, 2), 2.4 * (scenario["valence"] - 0.5)),
        arms=np.zeros((frames, 2, 2)),
        bend=np.full((frames, 2, 2), 0.35),
        reach=np.zeros((frames, 2, 2)),
        meet=np.zeros(frames),
    )
    return Stage(
        scenario=scenario,
        rng=rng,
        time=time,
        progress=time / time[-1],
        phase=phase,
        beat=beat,
        turn=np.stack([ramp(floor, -0.25, 0.25), ramp(-floor, -0.25, 0.25)], axis=1),
        gap=np.full(frames, MIN_SEPARATION + (MAX_SEPARATION - MIN_SEPARATION) * scenario["agent_distance"]),
        centre=np.zeros(frames),
        facing=np.full((frames, 2), scenario["facingness"]),
        script=script,
    )


def finish(stage: Stage) -> Script:
    """Add what the latents do in every interaction.

    Args:
        stage: A stage that a choreography has changed; it is used up.

    Returns:
        The script.
    """
    script = stage.script
    if not stage.placed:
        script.x += np.stack([stage.centre - stage.gap / 2, stage.centre + stage.gap / 2], axis=1)
    _press(stage)
    _stir(stage)
    _speak(stage)
    _touch(stage)
    script.x = np.clip(script.x, -EDGE, EDGE)
    _turn(stage)
    script.crouch = np.clip(script.crouch, 0, 1)
    script.talk = np.clip(script.talk, 0, 1)
    script.smile = np.clip(script.smile, -1, 1)
    script.reach = np.clip(script.reach, 0, 1)
    return script


def _press(stage: Stage) -> None:
    """Dominance: the leader is larger and presses forward, the partner shrinks and gives way."""
    script, dominance = stage.script, stage.scenario["dominance"]
    script.size *= 1 + np.array([0.2, -0.2]) * dominance
    push = 0.09 * dominance * pulses(TAU * 0.5 * stage.time + stage.rng.uniform(0, TAU), 1.0)
    script.x += push[:, None] * np.sign(script.x[:, [PARTNER]] - script.x[:, [LEADER]])
    script.lean += np.array([0.12, -0.18]) * dominance
    script.crouch[:, PARTNER] += 0.2 * dominance


def _stir(stage: Stage) -> None:
    """Arousal: bodies sway and limbs swing with the beat. Valence: what is pleasant bounces, what is not jerks."""
    script, valence, vigour = stage.script, stage.scenario["valence"], stage.vigour
    script.swing += 0.15 * vigour
    script.x += 0.03 * vigour * stage.beat
    script.arms += (0.65 * vigour * stage.beat)[:, :, None] * np.array([1.0, -1.0])
    script.hop += 0.05 * vigour * valence * np.abs(stage.beat)
    jerk = np.sign(np.sin(1.7 * stage.phase)) * pulses(1.7 * stage.phase, 6.0)
    script.x += 0.035 * (1 - valence) * vigour * jerk
    script.lean += 0.45 * (1 - valence) * vigour * jerk
    script.lean += 0.25 * (0.5 - valence) * (1 - stage.scenario["arousal"])  # low spirits slump, content stands upright


def _speak(stage: Stage) -> None:
    """Communication: whoever holds the floor gestures and moves the mouth."""
    script, speech = stage.script, stage.scenario["communication"] * stage.turn
    script.talk += speech * (0.55 + 0.45 * np.sin(TAU * 3.1 * stage.time)[:, None])
    script.arms[:, :, 0] += speech * (
        1.25 + 0.5 * np.sin(TAU * (1.0 + stage.scenario["arousal"]) * stage.time)[:, None]
    )
    script.bend[:, :, 0] += 0.7 * speech


def _touch(stage: Stage) -> None:
    """Intimacy: leaning in and touching, where the other is near enough."""
    script = stage.script
    closeness = ramp(np.asarray(stage.scenario["intimacy"]), 0.35, 0.9) * (1 - ramp(stage.gap, 0.3, 0.42))
    script.lean += 0.2 * closeness[:, None]
    script.reach[:, :, 1] = np.maximum(script.reach[:, :, 1], closeness[:, None])
    script.meet = np.maximum(script.meet, closeness)


def _turn(stage: Stage) -> None:
    """Facingness: agents look at each other, or turn away by way of the viewer, always to the same side."""
    script = stage.script
    towards = np.arctan2(script.z[:, ::-1] - script.z, script.x[:, ::-1] - script.x)
    away = (FULL_TURN_AWAY + 0.18 * stage.beat) * (1 - stage.facing)
    script.yaw += towards + np.where(np.cos(towards[0]) > 0, away, -away)
