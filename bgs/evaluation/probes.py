"""What embeddings tell linearly about people's ratings of the same clips: ridge regression under nested
cross-validation, with intervals over clips and permutation tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from bgs.data.splits import folds as divide
from bgs.evaluation.bootstrap import interval, resample_items

ALPHAS: tuple[float, ...] = tuple(float(alpha) for alpha in np.logspace(-5, 1, 13))
"""Penalties tried, per feature: 1e-5 to 10, two in a factor of ten."""

FOLDS, INNER_FOLDS = 5, 5
PERMUTATIONS, RESAMPLES = 1000, 1000

COLUMNS_AT_A_TIME = 2048
"""Permuted ratings predicted at a time, which bounds memory."""

# Standard deviation, relative to the mean, below which a feature or a rating counts as constant.
_CONSTANT = 1e-10

# Correlations that differ by rounding alone count as equal, in favour of the null hypothesis.
_TIE = 1e-12


@dataclass(frozen=True)
class Probe:
    """How well one rating is predicted on held-out clips.

    Attributes:
        name: of the rating.
        r: Pearson correlation; None where it is undefined, for `reason`.
        r_ci95: 95 % bootstrap interval over clips.
        r2: 1 - squared error / squared distance from the mean of the training clips.
        r2_ci95: as `r_ci95`.
        p: share of permutations of the clips that reach r.
        p_corrected: share of permutations in which the best of all ratings reaches r: corrected for the number of
            ratings (family-wise error, max-statistic).
        alphas: the penalty chosen in each fold.
        reason: why there is no value.
    """

    name: str
    r: float | None = None
    r_ci95: tuple[float, float] | None = None
    r2: float | None = None
    r2_ci95: tuple[float, float] | None = None
    p: float | None = None
    p_corrected: float | None = None
    alphas: tuple[float, ...] = ()
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@dataclass(frozen=True, eq=False)
class Probes:
    """Probes of all ratings; see `probe_ratings`.

    Attributes:
        probes: one for each rating.
        items: rows of the embeddings that were used: those with every rating.
        fold: (n,) the fold that each of them was held out in.
        predicted: (n, T) held-out predictions, NaN for ratings without a probe.
        actual: (n, T) ratings.
        resampled: (R, T) bootstrap values of r, by which models are compared.
        settings: numbers of folds, draws and permutations, and the seed, as they were asked for.
    """

    probes: tuple[Probe, ...]
    items: NDArray[np.int64] = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)
    predicted: NDArray[np.float64] = field(repr=False)
    actual: NDArray[np.float64] = field(repr=False)
    resampled: NDArray[np.float64] = field(repr=False)
    settings: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        ratings = {probe.name: {k: v for k, v in probe.to_dict().items() if k != "name"} for probe in self.probes}
        return {"ratings": ratings, "items": len(self.items), "correction": "max-statistic"} | self.settings


@dataclass(frozen=True)
class ProbeDifference:
    """How much better one model's embeddings tell a rating than another's; see `compare_probes`.

    Attributes:
        name: of the rating.
        difference: of r; None where either is undefined.
        ci95: 95 % paired bootstrap interval over clips.
        p: two-sided, share of exchanges of the models' predictions that differ as much.
        p_corrected: the same, with the largest of all ratings (max-statistic).
    """

    name: str
    difference: float | None
    ci95: tuple[float, float] | None
    p: float | None
    p_corrected: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return vars(self) | {"ci95": list(self.ci95) if self.ci95 else None}


def probe_ratings(
    embeddings: NDArray[np.floating],
    ratings: NDArray[np.float64],
    names: Sequence[str],
    *,
    alphas: ArrayLike = ALPHAS,
    folds: int = FOLDS,
    inner_folds: int = INNER_FOLDS,
    permutations: int = PERMUTATIONS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> Probes:
    """Predict ratings of held-out clips from their embeddings.

    In each outer fold, features are scaled to mean 0 and standard deviation 1 on the training clips, and
    w = (X'X + alpha D I)^-1 X'(y - mean y) is fitted there, with the alpha of least squared error in an inner
    cross-validation of the training clips, scaled anew in each. The number of features D makes a penalty mean the same
    for embeddings of any width: X'X grows with it. Held-out predictions of all folds give, with sums over
    folds f and the clips held out in f and bars for means over those,

        r = sum (p - p_f)(y - y_f) / sqrt(sum (p - p_f)^2 sum (y - y_f)^2),   R^2 = 1 - sum (y - p)^2 / sum (y - m_f)^2,

    m_f the mean over f's training clips. Centring in each fold keeps r from the negative bias of pooled predictions: a
    fold whose ratings are high has training clips whose mean is low.

    A permutation reassigns all ratings of clips together and repeats everything, choice of alpha included; p is
    (1 + permutations with r at least as large) / (1 + permutations), one-sided. The matrices that take training
    ratings to predictions do not depend on the ratings, so that a permutation is a product with them.

    Args:
        embeddings: (N, D), finite.
        ratings: (N, T); clips without any of the ratings are left out, so that all ratings rest on the same clips.
            Ratings that nobody has or that do not vary get no probe, and a reason.
        names: of the T ratings.
        alphas: penalties per feature; `sklearn.linear_model.Ridge` calls alpha D what is alpha here.
        folds: outer folds over clips.
        inner_folds: folds over the training clips of each.
        permutations: 0 for none, p is then None.
        resamples: bootstrap draws of clips, the predictions being kept.
        seed: of folds, draws and permutations.
        progress: whether to show a progress bar.

    Returns:
        A probe for each rating, and the predictions that they rest on.

    Raises:
        ValueError: naming the argument that is wrong, or too few clips with ratings.
    """
    features = np.asarray(embeddings, dtype=np.float64)
    penalties = np.sort(np.asarray(alphas, dtype=np.float64).ravel())
    _check(features, ratings, names, penalties, permutations, resamples)
    reasons: dict[int, str] = {}
    for number, column in enumerate(ratings.T):
        known = column[np.isfinite(column)]
        if not len(known):
            reasons[number] = "no clip has this rating"
        elif known.std() <= _CONSTANT * max(abs(known.mean()), 1e-300):
            reasons[number] = "the rating does not vary"
    probed = np.array([number for number in range(len(names)) if number not in reasons], dtype=np.int64)
    rows = np.flatnonzero(np.isfinite(ratings[:, probed]).all(axis=1))
    smallest = 2 * max(folds, inner_folds)
    if folds < 2 or inner_folds < 2 or len(rows) < smallest:
        raise ValueError(
            f"folds: {folds} outer and {inner_folds} inner folds of {len(rows)} clips with every rating; expected at "
            "least 2, and 2 clips in each"
        )
    x, y = features[rows], ratings[np.ix_(rows, probed)]
    # So that constant ratings, which float64 cannot always centre to 0, and units make no difference.
    y = (y - y.mean(axis=0)) / y.std(axis=0)
    outer = _fitted_folds(x, penalties, folds, inner_folds, seed)
    fold = np.empty(len(rows), dtype=np.int64)
    for number, part in enumerate(outer):
        fold[part.held] = number
    predicted, chosen = _predict(outer, penalties, y)
    even = np.ones((1, len(rows)))
    r = _correlations(predicted, y, fold, even)[0]
    mean = np.empty_like(y)
    for part in outer:
        mean[part.held] = y[part.train].mean(axis=0)
    residual, deviation = (y - predicted) ** 2, (y - mean) ** 2
    r2 = 1 - residual.sum(axis=0) / deviation.sum(axis=0)
    draws = resample_items(len(rows), resamples, seed)
    again = _correlations(predicted, y, fold, draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        again2 = 1 - (draws @ residual) / (draws @ deviation)
    p, corrected = _permutation_p(outer, penalties, y, fold, r, permutations, seed, progress)

    probes, everywhere = [], np.full((len(rows), len(names)), np.nan)
    resampled = np.full((resamples, len(names)), np.nan)
    scale, centre = ratings[np.ix_(rows, probed)].std(axis=0), ratings[np.ix_(rows, probed)].mean(axis=0)
    everywhere[:, probed] = predicted * scale + centre
    resampled[:, probed] = again
    for number, name in enumerate(names):
        if number in reasons:
            probes.append(Probe(name, reason=reasons[number]))
            continue
        at = int(np.searchsorted(probed, number))
        if not np.isfinite(r[at]):
            reason = "predictions do not vary within folds"
            probes.append(Probe(name, r2=float(r2[at]), alphas=tuple(map(float, chosen[:, at])), reason=reason))
            continue
        probes.append(
            Probe(
                name,
                r=float(r[at]),
                r_ci95=interval(again[:, at]),
                r2=float(r2[at]),
                r2_ci95=interval(again2[:, at]),
                p=None if p is None else float(p[at]),
                p_corrected=None if corrected is None else float(corrected[at]),
                alphas=tuple(map(float, chosen[:, at])),
            )
        )
    settings = {
        "folds": folds,
        "inner_folds": inner_folds,
        "permutations": permutations,
        "resamples": resamples,
        "seed": seed,
    }
    return Probes(tuple(probes), rows, fold, everywhere, ratings[rows], resampled, settings)


def compare_probes(
    one: Probes, other: Probes, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> list[ProbeDifference]:
    """Compare the probes of two models on the same clips and folds: r of the first minus r of the second.

    The interval comes from the same draws of clips for both. For p, under the hypothesis that the models predict alike,
    which of the two predictions of a clip, each scaled to mean 0 and unit variance in its fold, is whose is arbitrary:
    it is exchanged clip by clip at random, for all ratings together. Differences are in units of their bootstrap
    standard deviation, so that ratings count alike in the maximum. The test is approximate, since the predictions of a
    fold share a fit.

    Args:
        one: probes of a model.
        other: those of another, of the same ratings with the same settings.
        permutations: random exchanges; 0 for none.
        seed: of the exchanges.

    Returns:
        A difference for each rating.

    Raises:
        ValueError: the probes are not of the same clips, ratings and settings.
    """
    names = [probe.name for probe in one.probes]
    same = names == [probe.name for probe in other.probes] and one.settings == other.settings
    if not same or not np.array_equal(one.items, other.items) or not np.array_equal(one.actual, other.actual, True):
        raise ValueError("probes: the two are not of the same clips, ratings and settings")
    known = np.array([a.r is not None and b.r is not None for a, b in zip(one.probes, other.probes, strict=True)])
    p = corrected = np.full(len(names), np.nan)
    if known.any() and permutations:
        a, b = (_standard(part.predicted[:, known], one.fold) for part in (one, other))
        y, even = one.actual[:, known], np.ones((1, len(one.items)))
        spread = np.nanstd(one.resampled[:, known] - other.resampled[:, known], axis=0)
        spread = np.where(spread > _TIE, spread, 1.0)

        def difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
            ours, theirs = (_correlations(predicted, y, one.fold, even)[0] for predicted in (first, second))
            return np.abs(ours - theirs) / spread

        observed = difference(a, b)
        generator = np.random.Generator(np.random.PCG64(seed))
        reached = np.zeros((2, int(known.sum())))
        for _ in range(permutations):
            swap = generator.random((len(a), 1)) < 0.5
            drawn = difference(np.where(swap, b, a), np.where(swap, a, b))
            reached += [drawn >= observed - _TIE, np.nanmax(drawn) >= observed - _TIE]
        p, corrected = (np.full(len(names), np.nan) for _ in range(2))
        p[known], corrected[known] = (1 + reached) / (1 + permutations)
    found = []
    for number, (a_probe, b_probe) in enumerate(zip(one.probes, other.probes, strict=True)):
        if a_probe.r is None or b_probe.r is None:
            found.append(ProbeDifference(a_probe.name, None, None, None, None))
            continue
        ci95 = interval(one.resampled[:, number] - other.resampled[:, number])
        chances = [float(p[number]), float(corrected[number])] if permutations else [None, None]
        found.append(ProbeDifference(a_probe.name, a_probe.r - b_probe.r, ci95, *chances))
    return found


@dataclass(frozen=True, eq=False)
class _Fit:
    """Ridge regression of one training set, for all penalties and any target.

    Predictions of penalty a are mean y + right @ (gains[a] * (left @ (y - mean y))).

    Attributes:
        train, held: rows.
        left: (k, n_train) transposed left singular vectors of the scaled features.
        right: (n_held, k) held-out features in the basis of the right ones.
        gains: (A, k) s / (s^2 + alpha D).
        inner: the folds of the training set.
    """

    train: NDArray[np.int64]
    held: NDArray[np.int64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    gains: NDArray[np.float64]
    inner: tuple[_Fit, ...] = ()


def _fitted_folds(
    x: NDArray[np.float64], alphas: NDArray[np.float64], folds: int, inner_folds: int, seed: int
) -> tuple[_Fit, ...]:
    found = []
    for number, (train, held) in enumerate(divide(np.arange(len(x)), folds, seed)):
        pairs = divide(train, inner_folds, seed + number + 1)
        inner = tuple(_fit(x, fit, validated, alphas) for fit, validated in pairs)
        found.append(_fit(x, train, held, alphas, inner))
    return tuple(found)


def _fit(
    x: NDArray[np.float64],
    train: NDArray[np.int64],
    held: NDArray[np.int64],
    alphas: NDArray[np.float64],
    inner: tuple[_Fit, ...] = (),
) -> _Fit:
    mean, spread = x[train].mean(axis=0), x[train].std(axis=0)
    spread = np.where(spread > _CONSTANT * np.abs(mean), spread, np.inf)
    u, s, vt = np.linalg.svd((x[train] - mean) / spread, full_matrices=False)
    kept = s > s.max(initial=0) * len(train) * np.finfo(np.float64).eps
    s = s[kept]
    right = ((x[held] - mean) / spread) @ vt[kept].T
    return _Fit(train, held, u[:, kept].T, right, s / (s**2 + alphas[:, None] * x.shape[1]), inner)


def _predict(
    outer: Sequence[_Fit], alphas: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predict every held-out row: (n, C) for C targets, and the penalties chosen (folds, C)."""
    predicted, chosen = np.empty_like(y), np.empty((len(outer), y.shape[1]))
    for number, part in enumerate(outer):
        error = np.zeros((len(alphas), y.shape[1]))
        for fit in part.inner:
            mean = y[fit.train].mean(axis=0)
            projected = fit.left @ (y[fit.train] - mean)
            missing = y[fit.held] - mean
            for place, gain in enumerate(fit.gains):
                error[place] += ((missing - (fit.right * gain) @ projected) ** 2).sum(axis=0)
        best = error.argmin(axis=0)
        mean = y[part.train].mean(axis=0)
        projected = part.left @ (y[part.train] - mean)
        predicted[part.held] = mean + part.right @ (part.gains[best].T * projected)
        chosen[number] = alphas[best]
    return predicted, chosen


def _permutation_p(
    outer: Sequence[_Fit],
    alphas: NDArray[np.float64],
    y: NDArray[np.float64],
    fold: NDArray[np.int64],
    r: NDArray[np.float64],
    permutations: int,
    seed: int,
    progress: bool,
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Probabilities of each r under permutation of the clips, alone and as the largest of all ratings."""
    if not permutations or not y.shape[1]:
        return None, None
    generator = np.random.Generator(np.random.PCG64(seed))
    reached = np.zeros((2, y.shape[1]))
    even = np.ones((1, len(y)))
    step = max(1, COLUMNS_AT_A_TIME // y.shape[1])
    with tqdm(total=permutations, desc="probes", unit="permutation", disable=not progress, leave=False) as bar:
        for start in range(0, permutations, step):
            some = min(step, permutations - start)
            shuffled = np.concatenate([y[generator.permutation(len(y))] for _ in range(some)], axis=1)
            predicted, _ = _predict(outer, alphas, shuffled)
            drawn = _correlations(predicted, shuffled, fold, even)[0].reshape(some, -1)
            drawn = np.where(np.isfinite(drawn), drawn, 0.0)
            reached[0] += (drawn >= r - _TIE).sum(axis=0)
            reached[1] += (drawn.max(axis=1)[:, None] >= r - _TIE).sum(axis=0)
            bar.update(some)
    p, corrected = (1 + reached) / (1 + permutations)
    return p, corrected


def _correlations(
    predicted: NDArray[np.float64], y: NDArray[np.float64], fold: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Correlate predictions with targets (n, C), both centred in their fold, for each row of weights: (R, C)."""
    sums = np.zeros((3, len(weights), y.shape[1]))
    for number in range(int(fold.max()) + 1):
        rows = fold == number
        p, t, w = predicted[rows], y[rows], weights[:, rows]
        # An offset common to a fold cancels; taking it off first keeps the sums accurate.
        p, t = p - p.mean(axis=0), t - t.mean(axis=0)
        total = np.maximum(w.sum(axis=1, keepdims=True), 1.0)
        mean_p, mean_t = w @ p / total, w @ t / total
        sums += [w @ (p * t) - total * mean_p * mean_t, w @ p**2 - total * mean_p**2, w @ t**2 - total * mean_t**2]
    cross, spread_p, spread_t = sums
    scale = np.sqrt(np.maximum(spread_p, 0) * np.maximum(spread_t, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > _CONSTANT, cross / scale, np.nan)


def _standard(predicted: NDArray[np.float64], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    found = np.empty_like(predicted)
    for number in range(int(fold.max()) + 1):
        part = predicted[fold == number]
        spread = part.std(axis=0)
        found[fold == number] = (part - part.mean(axis=0)) / np.where(spread > 0, spread, np.inf)
    return found


def _check(
    embeddings: NDArray[np.float64],
    ratings: NDArray[np.float64],
    names: Sequence[str],
    alphas: NDArray[np.float64],
    permutations: int,
    resamples: int,
) -> None:
    if embeddings.ndim != 2 or ratings.ndim != 2 or len(embeddings) != len(ratings):
        raise ValueError(
            f"embeddings and ratings: shapes {embeddings.shape} and {ratings.shape}; expected (N, D) and (N, T)"
        )
    if ratings.shape[1] != len(names):
        raise ValueError(f"names: {len(names)} for {ratings.shape[1]} ratings")
    broken = ~np.isfinite(embeddings).all(axis=1)
    if broken.any():
        raise ValueError(f"embeddings: not finite (row {int(broken.argmax())})")
    if not len(alphas) or not (alphas > 0).all() or not np.isfinite(alphas).all():
        raise ValueError(f"alphas: {alphas.tolist()}; expected positive numbers")
    if permutations < 0:
        raise ValueError(f"permutations: {permutations}; expected at least 0")
    if resamples < 1:
        raise ValueError(f"resamples: {resamples}; expected at least 1")
