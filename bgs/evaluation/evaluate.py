"""The evaluation of a model against people: embeddings and judgments in, numbers with intervals out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from bgs.data.geometry import dissimilarity
from bgs.data.judgments import Judgments
from bgs.evaluation.bootstrap import interval, resample_items
from bgs.evaluation.ceiling import odd_one_out_ceiling
from bgs.evaluation.odd_one_out import CHANCE_THREE_WAY, CHANCE_TWO_WAY, resampled_accuracy, score_judgments
from bgs.evaluation.reliability import split_half
from bgs.evaluation.rsa import Method, correlate

RESAMPLES = 1000

METHODS: tuple[Method, ...] = ("pearson", "spearman")
"""Correlations that are computed unless others are asked for."""

WEIGHTS_AT_A_TIME = 2**21
"""Pair weights held at a time while correlations are resampled: 16 MiB. There are resamples x pairs of them,
14 GB for the 1,854 objects of THINGS.
"""


@dataclass(frozen=True, eq=False)
class Held:
    """Items that one model embedded without having been trained on them, and the judgments among them.

    Attributes:
        embeddings: (n, D) of any float dtype.
        judgments: over those n items, numbered as the rows of `embeddings`.
    """

    embeddings: Tensor
    judgments: Judgments

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.embeddings) != len(self.judgments.items):
            raise ValueError(
                f"embeddings: shape {tuple(self.embeddings.shape)}; expected one row for each of the "
                f"{len(self.judgments.items)} items of the judgments"
            )


@dataclass(frozen=True)
class Measure:
    """One number and what is known about it.

    Attributes:
        value: the number; None where it is undefined.
        ci95: 95 % bootstrap interval over items; None where it is undefined.
        n: judgments or pairs that the number rests on.
        chance: what guessing scores; None where that has no meaning.
        ceiling: what the best possible model scores, as far as the judgments tell; None where they do not.
    """

    value: float | None
    ci95: tuple[float, float] | None
    n: int
    chance: float | None = None
    ceiling: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields; `chance` and `ceiling` only where they are defined."""
        found: dict[str, Any] = {"value": self.value, "ci95": list(self.ci95) if self.ci95 else None, "n": self.n}
        if self.chance is not None:
            found["chance"] = self.chance
        if self.ceiling is not None:
            found["ceiling"] = self.ceiling
        return found


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Measures by name, and their bootstrap values, by which two models evaluated alike can be compared.

    Attributes:
        measures: `odd_one_out.three_way`, `odd_one_out.two_way`, `rsa.pearson`, `rsa.spearman`,
            `rsa.explained_variance`; `rsa.cosine` and `rsa.tau-a` where asked for.
        resampled: (R,) for each measure.
    """

    measures: dict[str, Measure]
    resampled: dict[str, NDArray[np.float64]] = field(repr=False)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return nested, JSON-ready measures: `{"odd_one_out": {"three_way": {...}, ...}, "rsa": {...}}`."""
        nested: dict[str, dict[str, Any]] = {}
        for name, measure in self.measures.items():
            family, which = name.split(".")
            nested.setdefault(family, {})[which] = measure.to_dict()
        return nested

    def minus(self, other: Evaluation) -> dict[str, Measure]:
        """Difference to another model on the same items and judgments, with paired intervals."""
        found = {}
        for name, ours in self.measures.items():
            theirs = other.measures[name]
            if ours.n != theirs.n or len(self.resampled[name]) != len(other.resampled[name]):
                raise ValueError(f"{name}: the two evaluations are not of the same judgments")
            value = None if ours.value is None or theirs.value is None else ours.value - theirs.value
            found[name] = Measure(value, interval(self.resampled[name] - other.resampled[name]), ours.n)
        return found


def cosine_similarity(embeddings: Tensor) -> NDArray[np.float32]:
    """Cosine similarity of all pairs of rows: computed in float64, given in float32.

    The last step makes rows that differ by rounding alone tie exactly, so that a collapsed embedding scores chance.

    Args:
        embeddings: (N, D); a zero row has similarity 0 to all.

    Returns:
        (N, N) float32.
    """
    rows = embeddings.detach().to("cpu", torch.float64)
    rows = torch.nn.functional.normalize(rows, dim=1)
    return (rows @ rows.T).numpy().astype(np.float32)


def evaluate(
    held: Sequence[Held],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    known_ceiling: dict[str, dict[str, float]] | None = None,
    methods: Sequence[Method] = METHODS,
    progress: bool = False,
) -> Evaluation:
    """Measure how well embeddings agree with people's judgments.

    Odd-one-out accuracy pools the judgments of all sets. Correlations are taken within each set, over its observed
    pairs i < j, and averaged with the number of pairs as weight: distances of two models have no common scale.
    `rsa.explained_variance` is the squared Spearman correlation (Garcia & Isik, arXiv 2510.01502); a negative
    correlation explains nothing and counts as 0, so that a reversed geometry scores no better than a random one.
    Guessing scores slightly above 0 in it, since a square never averages to 0.

    The ceilings of `rsa.pearson` and `rsa.spearman` are the square roots of the split-half reliability of all observed
    pairs, that of `rsa.explained_variance` is the reliability itself (`split_half`); they need participants. The
    formula has no counterpart for `cosine` and `tau-a`.

    Args:
        held: one set for an ordinary evaluation, one for each fold under cross-validation.
        resamples: bootstrap draws of items, within each set.
        seed: of the draws; evaluations with one seed can be compared draw by draw (`Evaluation.minus`).
        known_ceiling: ceiling by measure where it is known from outside, such as of simulated observers.
        methods: correlations to compute, see `correlate`.
        progress: whether to show a progress bar of the draws.

    Returns:
        The measures; those without any judgment or pair have value None.

    Raises:
        ValueError: no set was given, or there is no such method.
    """
    if not held:
        raise ValueError("held: no set to evaluate")
    if unknown := set(methods) - set(get_args(Method)):
        raise ValueError(f"methods: {min(unknown)!r}; expected any of {', '.join(get_args(Method))}")
    similarities = [cosine_similarity(part.embeddings) for part in held]
    draws = [resample_items(len(part.embeddings), resamples, seed + number) for number, part in enumerate(held)]
    measures: dict[str, Measure] = {}
    resampled: dict[str, NDArray[np.float64]] = {}

    scores = [score_judgments(s, part.judgments.triplets) for s, part in zip(similarities, held, strict=True)]
    judged = sum(len(part.judgments) for part in held)
    chances = {"three_way": CHANCE_THREE_WAY, "two_way": CHANCE_TWO_WAY}
    ceilings: dict[str, dict[str, float] | None] = {"odd_one_out.three_way": _measured_ceiling(held)}
    ceilings |= reliability_ceiling([part.judgments for part in held], methods, seed) | (known_ceiling or {})
    for which, chance in chances.items():
        name = f"odd_one_out.{which}"
        points = [getattr(score, which) for score in scores]
        sums = [
            resampled_accuracy(found, part.judgments.triplets, drawn)
            for found, part, drawn in zip(points, held, draws, strict=True)
        ]
        with np.errstate(invalid="ignore"):
            total, weight = np.sum(sums, axis=0)
            resampled[name] = total / weight
        value = _defined(np.concatenate(points).mean()) if judged else None
        measures[name] = Measure(value, interval(resampled[name]), judged, chance, ceilings.get(name))

    pairs = [_observed_pairs(s, part) for s, part in zip(similarities, held, strict=True)]
    count = sum(len(model) for _, model, _ in pairs)
    for method in methods:
        name = f"rsa.{method}"
        values, shares = [], []
        again = np.zeros((2, resamples))
        for (rows, model, human), drawn in zip(pairs, draws, strict=True):
            if len(model) < 2:
                continue
            values.append(correlate(model, human, method=method)[0])
            shares.append(len(model))
            step = max(1, WEIGHTS_AT_A_TIME // len(model))
            starts = range(0, resamples, step)
            for start in tqdm(starts, desc=f"RSA, {method}", unit="block", disable=not progress, leave=False):
                some = drawn[start : start + step]
                weights = some[:, rows[0]] * some[:, rows[1]]
                size = weights.sum(axis=1)
                again[:, start : start + step] += np.stack([correlate(model, human, weights, method) * size, size])
        with np.errstate(invalid="ignore"):
            resampled[name] = again[0] / again[1]
        mean = _defined(np.average(values, weights=shares)) if values else None
        guessed = None if method == "cosine" else 0.0
        measures[name] = Measure(mean, interval(resampled[name]), count, guessed, ceilings.get(name))
        if method == "spearman":
            name = "rsa.explained_variance"
            resampled[name] = np.maximum(resampled["rsa.spearman"], 0) ** 2
            squared = None if mean is None else max(mean, 0.0) ** 2
            measures[name] = Measure(squared, interval(resampled[name]), count, None, ceilings.get(name))
    return Evaluation(measures, resampled)


def reliability_ceiling(
    judgments: Sequence[Judgments], methods: Sequence[Method] = METHODS, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Bound RSA by how reliable the human dissimilarities are, averaged over sets with their shared pairs as weight.

    Args:
        judgments: one set for an ordinary evaluation, one for each fold under cross-validation.
        methods: correlations; only `pearson` and `spearman` have such a bound.
        seed: of the divisions of the participants.

    Returns:
        By measure, `upper` and the `reliability` that it rests on; empty where that is undefined in every set.
    """
    found: dict[str, dict[str, float]] = {}
    for method in ("pearson", "spearman"):
        if method not in methods:
            continue
        halves = [split_half(part, method=method, seed=seed) for part in judgments]
        known = [(half.all_pairs, half.ceiling, half.pairs) for half in halves if half.all_pairs and half.ceiling]
        if not known:
            continue
        values, ceilings, pairs = map(np.array, zip(*known, strict=True))
        reliability = float(np.average(values, weights=pairs))
        found[f"rsa.{method}"] = {"upper": float(np.average(ceilings, weights=pairs)), "reliability": reliability}
        if method == "spearman":
            found["rsa.explained_variance"] = {"upper": reliability, "reliability": reliability}
    return found


def _observed_pairs(
    similarity: NDArray[np.float32], part: Held
) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], NDArray[np.float32], NDArray[np.float64]]:
    """Rows and columns of the pairs that people judged, and both dissimilarities of each."""
    human = dissimilarity(part.judgments)
    rows, columns = np.triu_indices(len(similarity), 1)
    observed = np.isfinite(human[rows, columns])
    rows, columns = rows[observed], columns[observed]
    return (rows, columns), 1 - similarity[rows, columns], human[rows, columns]


def _measured_ceiling(held: Sequence[Held]) -> dict[str, float] | None:
    """Ceiling from triplets judged more than once, over all sets, every repeated triplet with the same weight."""
    found = [odd_one_out_ceiling(part.judgments) for part in held]
    found = [ceiling for ceiling in found if ceiling.triplets]
    if not found:
        return None
    weights = [ceiling.triplets for ceiling in found]
    bounds = {"lower": [c.lower for c in found], "upper": [c.upper for c in found]}
    means = {name: float(np.average(values, weights=weights)) for name, values in bounds.items()}
    return {name: value for name, value in means.items() if np.isfinite(value)} | {"triplets": sum(weights)}


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
