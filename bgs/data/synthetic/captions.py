"""What simulated annotators say of a clip: captions in varied words, and ratings with rater noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bgs.data.synthetic.latents import LATENTS, Scenario
from bgs.data.synthetic.scene import Scene

CAPTIONS_PER_CLIP = 5
RATERS = 10
RATER_SD = 0.15
RATING_STEPS = 4  # raters answer on a five-point scale

# The scales of the published annotations, in their order; the first three are of the setting, the rest are latents.
RATINGS = (
    "indoor",
    "expanse",
    "object",
    "agent_distance",
    "facingness",
    "joint_action",
    "communication",
    "valence",
    "arousal",
    "intimacy",
    "dominance",
)

_PEOPLE = (
    "two people",
    "two persons",
    "a pair of people",
    "two figures",
    "a couple of people",
    "one person and another",
    "two humans",
)
_SHAPES = ("two shapes", "two geometric shapes", "a pair of shapes")
_ACTIONS: dict[str, tuple[str, ...]] = {
    "argue": (
        "argue",
        "have a heated argument",
        "quarrel with each other",
        "shout and point at each other",
        "are in a dispute",
    ),
    "block": (
        "get in each other's way as one blocks the other",
        "stand off one not letting the other pass",
        "struggle to get past one barring the way",
        "face off while one obstructs the other",
        "try to go by but one stops the other",
    ),
    "chase": (
        "run in a chase one after the other",
        "race around one trying to catch the other",
        "run one fleeing from the other",
        "chase around in a circle",
        "are in pursuit one escaping",
    ),
    "comfort": (
        "hug while one consoles the other",
        "hold each other one is sad",
        "sit close as one comforts the other",
        "embrace one giving support",
        "share a quiet moment of consolation",
    ),
    "dance": (
        "dance together",
        "dance and sway in step",
        "move to music as partners",
        "do a dance with each other",
        "sway side to side in a dance",
    ),
    "fight": ("fight", "punch each other", "are in a fist fight", "hit each other and stagger", "brawl"),
    "follow": (
        "walk along one following the other",
        "walk one behind the other",
        "stroll past in single file",
        "go the same way one trailing",
        "walk across one in the footsteps of the other",
    ),
    "greet": (
        "greet each other",
        "wave and shake hands",
        "meet and say hello",
        "wave hello as they come together",
        "welcome each other with a handshake",
    ),
    "help": (
        "help each other one lifting the other up",
        "are helping one gets the other back on their feet",
        "reach out one pulling the other up from the ground",
        "stand up with the help of one of them",
        "lend a hand after one fell down",
    ),
    "ignore": (
        "ignore each other",
        "stand around without interacting",
        "mind their own business",
        "look away each on their own",
        "wait separately",
    ),
    "play": (
        "play together",
        "jump up and down playing",
        "have fun playing a game",
        "leap and play around",
        "bounce around in play",
    ),
    "teach": (
        "stand while one explains something to the other",
        "have a lesson one teaching the other",
        "look at what one is pointing out",
        "talk one is instructing the other",
        "are teaching and learning",
    ),
}

# Words for the low and the high end of a latent; the middle goes unmentioned.
_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "valence": (
        ("angrily", "in a hostile mood", "looking upset", "unhappily"),
        ("happily", "with smiles", "in a cheerful mood", "joyfully"),
    ),
    "arousal": (
        ("calmly", "slowly", "quietly", "hardly moving"),
        ("energetically", "wildly", "very fast", "with a lot of energy"),
    ),
    "agent_distance": (
        ("very close together", "side by side", "near each other"),
        ("far apart", "at a distance", "with space between them"),
    ),
    "intimacy": (
        ("like strangers", "without closeness"),
        ("affectionately", "like close friends", "touching each other"),
    ),
    "communication": (("without a word", "in silence"), ("talking a lot", "in conversation", "speaking and gesturing")),
    "facingness": (("facing away", "not looking at each other"), ("face to face", "looking at each other")),
    "joint_action": (("each doing their own thing", "out of step"), ("together", "in sync", "as a team")),
    "dominance": (("as equals",), ("with one in charge", "one of them dominating")),
}
_PLACES = {
    "living room": ("in a living room", "at home", "inside a room"),
    "kitchen": ("in a kitchen", "inside a house"),
    "office": ("in an office", "indoors"),
    "hallway": ("in a hallway", "inside a building"),
    "park": ("in a park", "outside near trees"),
    "street": ("on a street", "outside in the city"),
    "beach": ("on a beach", "at the seaside"),
    "field": ("in a field", "outdoors on the grass"),
}


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _remarks(scenario: Scenario, rng: np.random.Generator) -> list[str]:
    """Return words for the latents that stand out to this annotator, most striking first."""
    felt = {name: scenario[name] + rng.normal(0, RATER_SD) for name in LATENTS}
    striking = sorted(
        (name for name in LATENTS if abs(felt[name] - 0.5) > 0.2), key=lambda name: -abs(felt[name] - 0.5)
    )
    return [_pick(_WORDS[name][int(felt[name] > 0.5)], rng) for name in striking]


def write_captions(scenario: Scenario, scene: Scene | None, rng: np.random.Generator) -> tuple[str, ...]:
    """Write a clip's captions, each as another annotator would put it.

    Args:
        scenario: What happens.
        scene: Where; None for abstract shapes on a plain ground, which are called shapes.
        rng: The clip's caption stream.

    Returns:
        CAPTIONS_PER_CLIP sentences in lower case, without punctuation.
    """
    captions = []
    for _ in range(CAPTIONS_PER_CLIP):
        words = [_pick(_PEOPLE if scene else _SHAPES, rng), _pick(_ACTIONS[scenario.interaction], rng)]
        words += _remarks(scenario, rng)[: int(rng.integers(1, 4))]
        if scene and rng.uniform() < 0.5:
            words.append(_pick(_PLACES[scene.kind], rng))
        captions.append(" ".join(words))
    return tuple(captions)


def rate(scenario: Scenario, scene: Scene | None, rng: np.random.Generator) -> dict[str, float]:
    """Rate a clip on the published scales.

    Args:
        scenario: What happens.
        scene: Where; None for a plain ground, which is neither indoors nor wide and holds no object.
        rng: The clip's rating stream.

    Returns:
        The mean of RATERS noisy answers on a five-point scale for each of RATINGS, in [0, 1]; `indoor` is 0 or 1.
    """
    truth = {name: scenario[name] for name in LATENTS}
    truth |= {"expanse": scene.expanse, "object": scene.objects} if scene else {"expanse": 0.0, "object": 0.0}
    ratings = {"indoor": float(scene.indoor) if scene else 0.0}
    for name in RATINGS[1:]:
        answers = truth[name] + rng.normal(0, RATER_SD, RATERS)
        ratings[name] = float((np.clip(np.round(answers * RATING_STEPS), 0, RATING_STEPS) / RATING_STEPS).mean())
    return ratings
