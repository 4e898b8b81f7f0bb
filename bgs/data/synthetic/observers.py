"""Simulated participants, who choose by a softmax over similarity in latent space, so that their ceiling is exact."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bgs.data.synthetic.latents import LATENTS

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# How much each latent counts: activity, pleasantness and closeness lead, so that a few dimensions carry the geometry.
WEIGHTS = {
    "valence": 1.0,
    "arousal": 1.0,
    "dominance": 0.3,
    "intimacy": 0.6,
    "communication": 0.7,
    "facingness": 0.5,
    "agent_distance": 0.8,
    "joint_action": 0.5,
}
TEMPERATURE = 0.18  # gives an exact three-way ceiling of about .80 on 250 clips
PAIRS = np.array([[0, 1], [0, 2], [1, 2]])  # of a triplet; pair p leaves out item 2 - p as the odd one
_CHUNK = 4096  # triplets at a time, to bound memory over a large panel


@dataclass(frozen=True)
class Ceiling:
    """What the best possible model scores on a set of judgments, in expectation over the participants' choices.

    Args:
        three_way: Accuracy of naming the most probable pair.
        two_way: Accuracy of the same ranking of pairs, averaged over both anchors.
        agreement: Probability that two independent draws from the panel choose alike.
        judgments: Triplets averaged over, repeats counted.
        distinct_triplets: How many of them differ.
    """

    three_way: float
    two_way: float
    agreement: float
    judgments: int
    distinct_triplets: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the record that observers.json keeps, as JSON types."""
        return {
            "judgments": self.judgments,
            "distinct_triplets": self.distinct_triplets,
            "ceiling_three_way": self.three_way,
            "ceiling_two_way": self.two_way,
            "expected_agreement": self.agreement,
        }


@dataclass(frozen=True)
class Observers:
    """A panel of simulated participants.

    Participant p sees items i and j as similar by s_p(i, j) = -sqrt(sum_l w_pl (z_il - z_jl)^2 / sum_l w_pl), and takes
    a pair of a triplet as the similar one with probability softmax(s_p / temperature) over the three pairs.

    Args:
        positions: z, (N, 8) float64, the items' latents z-scored over the data set.
        weights: w, (P, 8) float64, how much each latent counts for each participant.
        temperature: Of the softmax, in z-score units.
    """

    positions: Floats
    weights: Floats
    temperature: float

    def similarity(self, triplets: Rows, participants: Rows) -> Floats:
        """Return the similarities of a triplet's pairs (ij, ik, jk) to the participant that judges it.

        Args:
            triplets: (T, 3) integer item rows.
            participants: (T,) integer participant rows.

        Returns:
            (T, 3) float64, in z-score units, at most 0.
        """
        shown = self.positions[triplets]
        squared = (shown[:, PAIRS[:, 0]] - shown[:, PAIRS[:, 1]]) ** 2
        weights = self.weights[participants][:, None, :]
        similarity: Floats = -np.sqrt((weights * squared).sum(-1) / weights.sum(-1))
        return similarity

    def probabilities(self, triplets: Rows, participants: Rows | None = None) -> Floats:
        """Return how probable each pair of a triplet is to be taken as the similar one.

        Args:
            triplets: (T, 3) integer item rows.
            participants: (T,) who judges each; None: one drawn at random from the panel, by the exact mean over it.

        Returns:
            (T, 3) float64, for the pairs (ij, ik, jk); rows sum to 1.
        """
        triplets = np.asarray(triplets)
        if participants is not None:
            return _softmax(self.similarity(triplets, participants) / self.temperature)
        panel, counts = np.unique(self.weights, axis=0, return_counts=True)  # those alike need computing once
        alike = Observers(self.positions, panel, self.temperature)
        mean = np.zeros((len(triplets), 3))
        for start in range(0, len(triplets), _CHUNK):
            rows = triplets[start : start + _CHUNK]
            for row, share in enumerate(counts / counts.sum()):
                mean[start : start + _CHUNK] += share * alike.probabilities(rows, np.full(len(rows), row))
        return mean

    def choose(self, triplets: Rows, participants: Rows, rng: np.random.Generator) -> Rows:
        """Let participants judge.

        Args:
            triplets: (T, 3) integer item rows.
            participants: (T,) who judges each.
            rng: Generator.

        Returns:
            (T,) int64, the item row of the odd one.
        """
        edges = np.cumsum(self.probabilities(triplets, participants), axis=1)
        pair = (rng.random(len(triplets))[:, None] >= edges[:, :2]).sum(axis=1)
        odd: Rows = np.asarray(triplets)[np.arange(len(triplets)), 2 - pair]
        return odd

    def ceiling(self, triplets: Rows) -> Ceiling:
        """Return the exact ceiling on some triplets, each judged by a participant drawn at random from the panel.

        The ideal answer ranks the pairs by probability, p1 >= p2 >= p3. Three-way it is right with p1. Two-way it is
        right for both anchors when the first pair was taken, for one when the second was, for neither when the third
        was: p1 + p2/2.

        Args:
            triplets: (T, 3) integer item rows; repeats count as often as they occur.

        Returns:
            The ceiling.

        Raises:
            ValueError: No triplet is given.
        """
        triplets = np.asarray(triplets)
        if triplets.ndim != 2 or triplets.shape[1] != 3 or not len(triplets):
            raise ValueError(f"triplets: shape {triplets.shape}, expected (T, 3) with T of at least 1")
        ranked = np.sort(self.probabilities(triplets), axis=1)[:, ::-1]
        return Ceiling(
            three_way=float(ranked[:, 0].mean()),
            two_way=float((ranked[:, 0] + ranked[:, 1] / 2).mean()),
            agreement=float((ranked**2).sum(axis=1).mean()),
            judgments=len(triplets),
            distinct_triplets=len(np.unique(np.sort(triplets, axis=1), axis=0)),
        )

    def to_dict(self) -> dict[str, object]:
        """Return what `load_observers` needs, as JSON types."""
        return {
            "temperature": self.temperature,
            "latents": list(LATENTS),
            "positions": self.positions.tolist(),
            "weights": self.weights.tolist(),
        }


def _softmax(logits: Floats) -> Floats:
    powers: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def make_observers(
    latents: Floats,
    participants: int,
    rng: np.random.Generator,
    *,
    temperature: float = TEMPERATURE,
    variation: float = 0.0,
) -> Observers:
    """Make a panel of participants.

    Args:
        latents: (N, 8) float64, in the order of LATENTS.
        participants: Number of participants.
        rng: Generator, for the participants' weights.
        temperature: Of the softmax, in z-score units of distance.
        variation: Standard deviation of the participants' log-weights around WEIGHTS; 0 makes all alike.

    Returns:
        The panel.
    """
    spread = latents.std(axis=0)
    positions = (latents - latents.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    base = np.array([WEIGHTS[name] for name in LATENTS])
    weights = base * np.exp(variation * rng.standard_normal((participants, len(base))))
    return Observers(positions, weights, temperature)


def load_observers(folder: str | os.PathLike[str]) -> Observers:
    """Load the panel that judged a synthetic data set, to compute its ceiling on any set of triplets.

    Args:
        folder: A synthetic data set.

    Returns:
        The panel; its item rows are those of `raw/utils/video_mapping.csv`.

    Raises:
        FileNotFoundError: The folder has no `raw/utils/observers.json`.
    """
    path = Path(folder) / "raw" / "utils" / "observers.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; data sets made by bgs.data.synthetic have it")
    panel = json.loads(path.read_text(encoding="utf-8"))["panel"]
    return Observers(np.array(panel["positions"]), np.array(panel["weights"]), float(panel["temperature"]))
