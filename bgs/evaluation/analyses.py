"""The analyses of `python -m bgs.evaluate` put together: which embeddings go into which, on the same items for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bgs.data.geometry import dissimilarity
from bgs.evaluation.compare import Comparison, compare_models
from bgs.evaluation.evaluate import METHODS, RESAMPLES, Evaluation, Held, cosine_similarity, evaluate
from bgs.evaluation.layers import LayerwiseRSA, layerwise_rsa
from bgs.evaluation.probes import FOLDS as PROBE_FOLDS
from bgs.evaluation.probes import INNER_FOLDS, PERMUTATIONS, ProbeDifference, Probes, compare_probes, probe_ratings
from bgs.evaluation.rdm_files import RDMs
from bgs.evaluation.reliability import Reliability, split_half
from bgs.evaluation.rsa import Method
from bgs.evaluation.saved import pooled_ceiling
from bgs.evaluation.sources import Embedded, RatingsSource, Source, Task
from bgs.evaluation.variance import FEWEST_IN_A_FOLD, FOLDS, MOST_PREDICTORS, Partition, partition_variance

Analysis = Literal["reliability", "probes", "variance", "layers"]
ANALYSES: tuple[Analysis, ...] = get_args(Analysis)
PEOPLE = "people"
"""Name of the human dissimilarities among those of models."""
_OF_ONE_SET: tuple[Analysis, ...] = ("probes", "variance", "layers")


@dataclass(frozen=True)
class Findings:
    """What was found, by heading of the models; the first is the one that was asked about.

    Attributes:
        evaluations: odd-one-out accuracy and RSA of every model.
        held: what they rest on, a set of items or one for each fold.
        comparisons: of every two of them.
        reliability: of people's dissimilarities, Pearson, for each set of items; None unless asked for, as all below.
        probes: of every model but the ratings themselves.
        probe_differences: the first model minus each of the others.
        variance: its partition between the models.
        layers: of the models that have them.
    """

    evaluations: dict[str, Evaluation]
    held: dict[str, list[Held]]
    comparisons: list[Comparison] = field(default_factory=list)
    reliability: list[Reliability] | None = None
    probes: dict[str, Probes] | None = None
    probe_differences: dict[str, list[ProbeDifference]] = field(default_factory=dict)
    variance: Partition | None = None
    layers: dict[str, LayerwiseRSA] | None = None

    def rdms(self) -> RDMs:
        """Return the dissimilarities of people and of all models.

        Raises:
            ValueError: under cross-validation, where no model embedded all items.
        """
        first = next(iter(self.held.values()))
        if len(first) > 1:
            raise ValueError(f"rdms: the models of {len(first)} folds have no common dissimilarities")
        matrices = {PEOPLE: dissimilarity(first[0].judgments)}
        for name, (part,) in self.held.items():
            matrices[name] = 1 - cosine_similarity(part.embeddings).astype(np.float64)
            np.fill_diagonal(matrices[name], 0)
        return RDMs(first[0].judgments.items, matrices)

    def to_dict(self) -> dict[str, Any]:
        """Return the first model's measures, JSON-ready, and under further keys whatever else was asked for."""
        first, *others = self.evaluations
        found: dict[str, Any] = dict(self.evaluations[first].to_dict())
        if others:
            found["against"] = {name: self.evaluations[name].to_dict() for name in others}
            found["comparisons"] = [comparison.to_dict() for comparison in self.comparisons]
        if self.reliability is not None:
            found["reliability"] = [part.to_dict() for part in self.reliability]
        if self.probes is not None:
            found["probes"] = {name: probes.to_dict() for name, probes in self.probes.items()}
            found["probe_differences"] = {
                name: {item.name: {k: v for k, v in item.to_dict().items() if k != "name"} for item in items}
                for name, items in self.probe_differences.items()
            }
        if self.variance is not None:
            found["variance"] = self.variance.to_dict()
        if self.layers is not None:
            found["layers"] = {name: layers.to_dict() for name, layers in self.layers.items()}
        return found


def analyse(
    source: Source,
    task: Task,
    *,
    against: Sequence[Source] = (),
    analyses: Sequence[Analysis] = (),
    methods: Sequence[Method] = METHODS,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    progress: bool = False,
) -> Findings:
    """Evaluate embeddings, compare them with others, and run the analyses asked for.

    Args:
        source: gives the embeddings asked about.
        task: what is evaluated on.
        against: give those that they are compared with.
        analyses: any of `reliability`, `probes`, `variance`, `layers`.
        methods: correlations to compute.
        resamples: bootstrap draws, in all analyses.
        permutations: of the probes.
        seed: of all that is drawn.
        progress: whether to show progress bars.

    Raises:
        ValueError: before anything is embedded, naming what is missing: a source without some of the items, one of the
            name of another, an analysis that the data, the number of models or cross-validation does not allow.
    """
    sources = [source, *against]
    sets = [task.judged(number) for number in range(len(task.sets))]
    _check(sources, task, sets, analyses)
    if unknown := set(methods) - set(get_args(Method)):
        raise ValueError(f"rsa: {min(unknown)!r}; expected any of {', '.join(get_args(Method))}")
    for each in sources:
        each.check(task)
    rated = _rated(sources, task) if "probes" in analyses else np.empty(0, dtype=np.int64)
    judgments = [task.dataset.judgments.among(rows, reindex=True) for rows in sets]
    held: dict[str, list[Held]] = {}
    embedded: dict[str, tuple[NDArray[np.int64], Embedded]] = {}
    for each in sources:
        held[each.name] = []
        for number, rows in enumerate(sets):
            needed = np.union1d(rows, rated) if not isinstance(each, RatingsSource) else rows
            found = each.embed(task, number, needed, layers="layers" in analyses and each.has_layers)
            embedded[each.name] = needed, found
            held[each.name].append(Held(found.vectors[np.searchsorted(needed, rows)], judgments[number]))
    drawn: dict[str, Any] = {"resamples": resamples, "seed": seed, "progress": progress}
    ceiling = pooled_ceiling(task.dataset, held[source.name])
    evaluations = {
        name: evaluate(parts, known_ceiling=ceiling, methods=methods, **drawn) for name, parts in held.items()
    }
    probes, differences = None, {}
    if "probes" in analyses and task.dataset.ratings is not None:
        ratings, probes = task.dataset.ratings, {}
        for each in sources:
            if not isinstance(each, RatingsSource):
                needed, found = embedded[each.name]
                vectors = found.vectors[np.searchsorted(needed, rated)].float().numpy()
                probes[each.name] = probe_ratings(
                    vectors, ratings.values[rated], ratings.names, permutations=permutations, **drawn
                )
        first, *others = probes
        differences = {
            name: compare_probes(probes[first], probes[name], permutations=permutations, seed=seed) for name in others
        }
    variance = None
    if "variance" in analyses:
        predictors = {name: 1 - cosine_similarity(parts[0].embeddings) for name, parts in held.items()}
        folds = min(FOLDS, len(sets[0]) // FEWEST_IN_A_FOLD)
        variance = partition_variance(dissimilarity(judgments[0]), predictors, folds=folds, **drawn)
    by_layer = None
    if "layers" in analyses:
        by_layer = {}
        for name, (needed, found) in embedded.items():
            if found.layers is not None:
                layers = found.layers[:, np.searchsorted(needed, sets[0])]
                by_layer[name] = layerwise_rsa(layers, judgments[0], found.numbers, **drawn)
    return Findings(
        evaluations=evaluations,
        held=held,
        comparisons=compare_models(evaluations) if against else [],
        reliability=[split_half(part, seed=seed) for part in judgments] if "reliability" in analyses else None,
        probes=probes,
        probe_differences=differences,
        variance=variance,
        layers=by_layer,
    )


def _check(
    sources: Sequence[Source], task: Task, sets: Sequence[NDArray[np.int64]], analyses: Sequence[Analysis]
) -> None:
    for analysis in analyses:
        if analysis not in ANALYSES:
            raise ValueError(f"analyses: {analysis!r}; expected any of {', '.join(ANALYSES)}")
        if analysis in _OF_ONE_SET and len(task.sets) > 1:
            raise ValueError(
                f"analyses: {analysis} compares clips embedded by one model, but {sources[0].name} has "
                f"{len(task.sets)}, one for each fold"
            )
    names = [each.name for each in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"against: {name!r} is named twice; expected different names")
    if "variance" in analyses and not 2 <= len(sources) <= MOST_PREDICTORS:
        raise ValueError(
            f"against: {len(sources) - 1} given; variance is divided between {sources[0].name} and one or two others"
        )
    if "variance" in analyses and len(sets[0]) < 2 * FEWEST_IN_A_FOLD:
        raise ValueError(f"analyses: variance of {len(sets[0])} clips; expected at least {2 * FEWEST_IN_A_FOLD}")
    if "layers" in analyses and not sources[0].has_layers:
        raise ValueError(
            f"analyses: layers, but {sources[0].name} has none; python -m bgs.embed --layers all writes them"
        )
    least = 2 * max(PROBE_FOLDS, INNER_FOLDS)
    if "probes" in analyses and len(_rated(sources, task)) < least:
        raise ValueError(
            f"analyses: probes, but {len(_rated(sources, task))} of these clips have a rating in {task.dataset.folder} "
            f"(annotations.csv); expected at least {least}"
        )


def _rated(sources: Sequence[Source], task: Task) -> NDArray[np.int64]:
    """Items of the only set that have any rating and, judged or not, embeddings from all sources; ascending."""
    ratings = task.dataset.ratings
    if ratings is None:
        return np.empty(0, dtype=np.int64)
    rows = np.sort(task.sets[0])
    rows = rows[np.isfinite(ratings.values[rows]).any(axis=1)]
    for source in sources:
        if not isinstance(source, RatingsSource):
            rows = rows[source.has(task, rows)]
    return rows
