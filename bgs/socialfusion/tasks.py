"""The five social tasks as data: what is asked, which answers there are, which boxes are needed, how it is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MARKER = "<image>"
"""Where the image's features go in a prompt."""

Metric = Literal["accuracy", "macro_f1", "map", "min_distance"]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: as manifests name it.
        prompt: the task text, with `MARKER` where the image goes. The image comes last, so that its positions in a
            causal language model know what is asked.
        classes: labels as manifests have them; empty for gaze following, which answers with a place.
        boxes: boxes that an example needs: 0, 1 (the person in question) or 2 (the two people of a relation).
        metric: the one that the dataset's authors report first; all are computed.
        positive: the class whose average precision `map` is, for a task of yes and no; None for the mean of all.
        dataset: where the classes come from.
    """

    name: str
    prompt: str
    classes: tuple[str, ...]
    boxes: int
    metric: Metric
    positive: str | None
    dataset: str

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes as text to be answered."""
        return tuple(name.replace("_", " ") for name in self.classes)


_TASKS = (
    Task(
        name="looking_at_me",
        prompt=f"Is the marked person looking at the camera? Answer yes or no.\n{MARKER}",
        classes=("no", "yes"),
        boxes=1,
        metric="map",
        positive="yes",
        dataset="Ego4D Looking-At-Me",
    ),
    Task(
        name="expression",
        prompt=f"Which facial expression does the person show?\n{MARKER}",
        classes=("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"),
        boxes=0,
        metric="accuracy",
        positive=None,
        dataset="AffectNet",
    ),
    Task(
        name="gesture",
        prompt=f"Which gesture does the hand make?\n{MARKER}",
        classes=(
            "call",
            "dislike",
            "fist",
            "four",
            "grabbing",
            "grip",
            "hand_heart",
            "hand_heart2",
            "holy",
            "like",
            "little_finger",
            "middle_finger",
            "mute",
            "no_gesture",
            "ok",
            "one",
            "palm",
            "peace",
            "peace_inverted",
            "point",
            "rock",
            "stop",
            "stop_inverted",
            "take_picture",
            "three",
            "three2",
            "three3",
            "three_gun",
            "thumb_index",
            "thumb_index2",
            "timeout",
            "two_up",
            "two_up_inverted",
            "xsign",
        ),
        boxes=0,
        metric="macro_f1",
        positive=None,
        dataset="HaGRIDv2",
    ),
    Task(
        name="relation",
        prompt=f"What is the relation between the two marked people?\n{MARKER}",
        classes=("friends", "family", "couple", "professional", "commercial", "no_relation"),
        boxes=2,
        metric="map",
        positive=None,
        dataset="PISC, fine relations",
    ),
    Task(
        name="gaze",
        prompt=f"Where does the marked person look?\n{MARKER}",
        classes=(),
        boxes=1,
        metric="min_distance",
        positive=None,
        dataset="GazeFollow",
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
"""The five by name."""

GAZE = "gaze"
CLASSIFICATION: tuple[str, ...] = tuple(name for name, task in TASKS.items() if task.classes)
