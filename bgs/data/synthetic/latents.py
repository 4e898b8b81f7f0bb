"""The causes of a synthetic scene: twelve interactions, the eight continuous latents they set, and the random streams
that keep them apart from nuisance.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

LATENTS = (
    "valence",
    "arousal",
    "dominance",
    "intimacy",
    "communication",
    "facingness",
    "agent_distance",
    "joint_action",
)

# Mean of each latent, in the order of LATENTS, all in [0, 1].
INTERACTIONS: dict[str, tuple[float, ...]] = {
    "argue": (0.12, 0.65, 0.60, 0.30, 0.95, 0.95, 0.30, 0.25),
    "block": (0.25, 0.55, 0.85, 0.20, 0.40, 0.85, 0.25, 0.40),
    "chase": (0.35, 0.90, 0.70, 0.15, 0.25, 0.45, 0.50, 0.50),
    "comfort": (0.55, 0.15, 0.50, 0.92, 0.45, 0.70, 0.08, 0.50),
    "dance": (0.88, 0.65, 0.30, 0.75, 0.20, 0.70, 0.20, 0.95),
    "fight": (0.08, 0.92, 0.55, 0.30, 0.40, 0.90, 0.15, 0.45),
    "follow": (0.50, 0.40, 0.40, 0.30, 0.20, 0.35, 0.45, 0.65),
    "greet": (0.90, 0.50, 0.15, 0.55, 0.75, 0.90, 0.45, 0.60),
    "help": (0.80, 0.40, 0.65, 0.60, 0.50, 0.75, 0.15, 0.70),
    "ignore": (0.40, 0.10, 0.20, 0.08, 0.08, 0.10, 0.85, 0.10),
    "play": (0.92, 0.85, 0.25, 0.60, 0.55, 0.70, 0.35, 0.80),
    "teach": (0.65, 0.25, 0.80, 0.35, 0.90, 0.55, 0.40, 0.50),
}

WITHIN_INTERACTION_SD = (
    0.11  # about a third of the spread between interactions: categories overlap, as they do for people
)


class Stream(IntEnum):
    """Independent random streams; what one draws can never reach another."""

    ASSIGNMENT = 0
    LATENTS = 1
    MOTION = 2
    NUISANCE = 3
    CAPTIONS = 4
    RATINGS = 5
    SPLIT = 6
    TRIALS = 7
    CHOICES = 8
    OBSERVERS = 9


def stream(seed: int, kind: Stream, clip: int | None = None) -> np.random.Generator:
    """Return the generator of one stream, of the whole set or of one clip.

    Args:
        seed: Seed of the data set.
        kind: Which stream.
        clip: Clip index, or None for a stream of the whole set.

    Returns:
        A generator that depends on these three alone: neither the number of clips nor the order of work matters.
    """
    key = (int(kind),) if clip is None else (int(kind), clip)
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=key))


@dataclass(frozen=True)
class Scenario:
    """What happens in one clip.

    Args:
        interaction: One of INTERACTIONS.
        latents: (8,) float64 in 0..1, in the order of LATENTS.
    """

    interaction: str
    latents: NDArray[np.float64]

    def __getitem__(self, latent: str) -> float:
        return float(self.latents[LATENTS.index(latent)])


def draw_scenarios(clips: int, seed: int) -> list[Scenario]:
    """Draw the scenario of every clip: interactions in equal shares, in random order, with latents around their means.

    Args:
        clips: Number of clips.
        seed: Seed of the data set.

    Returns:
        One scenario per clip.
    """
    names = sorted(INTERACTIONS)
    rng = stream(seed, Stream.ASSIGNMENT)
    order = rng.permutation(len(names))
    assigned = rng.permutation([order[clip % len(names)] for clip in range(clips)])
    scenarios = []
    for clip, index in enumerate(assigned):
        noise = stream(seed, Stream.LATENTS, clip).normal(0.0, WITHIN_INTERACTION_SD, len(LATENTS))
        values = np.clip(np.asarray(INTERACTIONS[names[index]]) + noise, 0.0, 1.0)
        scenarios.append(Scenario(names[index], values))
    return scenarios
