"""The settings of a synthetic data set, checked, and the record of them that a finished folder holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bgs.data.synthetic.render import STYLES

FORMAT_VERSION = 1  # raised when the same settings come to mean other bytes
MIN_ITEMS = 3  # of a split; with fewer there is no triplet


@dataclass(frozen=True)
class Settings:
    """Everything a synthetic data set depends on; `make_dataset` says what each is and gives the defaults.

    Raises:
        ValueError: A setting is out of range; the message names it, what was given and what was expected.
    """

    clips: int
    seed: int
    style: str
    size: int
    fps: int
    duration: float
    participants: int
    judgments: int
    test_judgments: int
    mixed_judgments: int
    catch_trials: float
    temperature: float
    participant_variation: float

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style: {self.style!r} given, expected one of {', '.join(STYLES)}")
        if self.size < 16 or self.size % 2:
            raise ValueError(f"size: {self.size} given, expected an even number of pixels, at least 16")
        least = {
            "clips": 2 * MIN_ITEMS,
            "seed": 0,
            "fps": 1,
            "participants": 1,
            "judgments": 1,
            "test_judgments": 1,
            "mixed_judgments": 0,
            "participant_variation": 0,
        }
        for name, lowest in least.items():
            if not getattr(self, name) >= lowest:
                raise ValueError(f"{name}: {getattr(self, name)} given, expected at least {lowest}")
        if self.frames < 2:
            raise ValueError(
                f"duration: {self.duration} s at {self.fps} fps is {self.frames} frames, expected 2 or more"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature: {self.temperature} given, expected a positive number")
        if not 0 <= self.catch_trials < 1:
            raise ValueError(f"catch_trials: {self.catch_trials} given, expected a share in [0, 1)")

    @property
    def frames(self) -> int:
        """Frames in a clip."""
        return round(self.fps * self.duration)

    def record(self) -> dict[str, object]:
        """Return what `dataset.json` says of a folder made with these settings, as JSON types."""
        return {"format": "bgs-synthetic", "version": FORMAT_VERSION, "settings": asdict(self)}
