"""Which share of what people see alike two or three models explain alone, and which they explain together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from bgs.evaluation.bootstrap import interval, resample_items

FOLDS, REPEATS, RESAMPLES = 5, 20, 1000
MOST_PREDICTORS = 3
FEWEST_IN_A_FOLD = 3
"""Items in a fold: three pairs to compare."""

# Relative size below which an eigenvalue of the predictors' correlation matrix is rounding: predictors are collinear.
_COLLINEAR = 1e-10


@dataclass(frozen=True)
class Share:
    """A share of the variance of human dissimilarities.

    Attributes:
        value: of held-out items; below 0 where prediction is worse than by the mean, or a part suppresses another.
        ci95: 95 % bootstrap interval over items; None where it is undefined.
    """

    value: float
    ci95: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return {"value": self.value, "ci95": list(self.ci95) if self.ci95 else None}


@dataclass(frozen=True)
class Partition:
    """Explained variance by models and its parts; see `partition_variance`.

    Attributes:
        explained: cross-validated R^2 by the names of the predictors in the regression.
        parts: the share that exactly these predictors have in common and no other has; a single name is what that
            predictor explains alone. They add up to `explained` of all predictors.
        items: number of items.
        pairs: number of their pairs that people judged.
        folds, repeats: of the cross-validation.
        non_negative: whether weights were kept from being negative.
    """

    explained: dict[tuple[str, ...], Share]
    parts: dict[tuple[str, ...], Share]
    items: int
    pairs: int
    folds: int
    repeats: int
    non_negative: bool

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields; names are joined by ` + `."""
        named = {
            kind: {" + ".join(names): share.to_dict() for names, share in shares.items()}
            for kind, shares in (("explained", self.explained), ("parts", self.parts))
        }
        return vars(self) | named


def partition_variance(
    human: NDArray[np.float64],
    predictors: Mapping[str, NDArray[np.floating]],
    *,
    folds: int = FOLDS,
    repeats: int = REPEATS,
    resamples: int = RESAMPLES,
    non_negative: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Partition:
    """Divide the variance of human dissimilarities that geometries explain into what each explains alone and shares.

    Human dissimilarities of pairs are regressed, with an intercept, on those of every subset of the predictors. Items
    are divided into folds at random: a regression is fitted to the pairs of two items outside a fold and scored on
    the pairs of two items in it, so that no item of a scored pair was seen; pairs across are not used. Per division

        R^2 = 1 - sum_folds sum_pairs (y - f(x))^2 / sum_folds sum_pairs (y - mean of the fit's y)^2,

    averaged over the divisions. A part S of the predictors, R the complement, has (commonality analysis)

        C(S) = - sum_{T subset of S} (-1)^|T| R^2(T u R),  for two: unique_1 = R12 - R2, shared = R1 + R2 - R12.

    R^2 is bounded by the reliability of `human` (`split_half`), not by 1. A shared part may be negative: suppression,
    or chance.

    Args:
        human: (N, N) symmetric dissimilarities, NaN where unobserved; the upper triangle is used.
        predictors: by name, two or three of shape (N, N). A pair that is NaN in any is left out.
        folds: of the items.
        repeats: divisions into folds.
        resamples: bootstrap draws of items; each is evaluated on one division, all copies of an item in one fold.
        non_negative: whether weights of predictors are kept at least 0, as more distance cannot mean more alike.
        seed: of divisions and draws.
        progress: whether to show a progress bar.

    Returns:
        R^2 of all subsets, and all parts.

    Raises:
        ValueError: naming the argument that is wrong: shapes, number of predictors, folds that leave fewer than two
            items, too few or constant pairs.
    """
    names = tuple(predictors)
    _check(human, predictors, folds, repeats, resamples)
    items = len(human)
    rows, columns = np.triu_indices(items, 1)
    values = np.stack([human[rows, columns], *(predictors[name][rows, columns] for name in names)], axis=1)
    values = values.astype(np.float64)
    observed = np.isfinite(values).all(axis=1)
    rows, columns, values = rows[observed], columns[observed], values[observed]
    if len(values) <= len(names) + 1 or not np.ptp(values[:, 0]):
        raise ValueError(f"human: {len(values)} pairs known to people and predictors, or all alike; nothing to explain")
    spread = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    columns_of = np.column_stack([np.ones(len(values)), values])
    left, right = np.triu_indices(columns_of.shape[1])
    products = columns_of[:, left] * columns_of[:, right]

    generator = np.random.Generator(np.random.PCG64(seed))
    fold_of = np.stack([generator.permutation(np.arange(items) % folds) for _ in range(repeats)])
    subsets = [subset for size in range(1, len(names) + 1) for subset in combinations(range(len(names)), size)]

    def explained(fold: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        label = fold[rows] * folds + fold[columns]
        sums = [np.bincount(label, weights * product, folds * folds) for product in products.T]
        blocks = np.stack(sums, axis=1).astype(np.float64).reshape(folds, folds, -1)
        test = blocks[np.arange(folds), np.arange(folds)]
        train = blocks.sum(axis=(0, 1)) - blocks.sum(axis=0) - blocks.sum(axis=1) + test
        return _held_out_r2(_symmetric(train), _symmetric(test), subsets, non_negative)

    even = np.ones(len(rows))
    measured = np.array([explained(fold, even) for fold in fold_of])
    draws = resample_items(items, resamples, seed)
    bar = tqdm(draws, desc="variance", unit="draw", disable=not progress, leave=False)
    again = np.array([explained(fold_of[n % repeats], d[rows] * d[columns]) for n, d in enumerate(bar)])
    if not np.isfinite(measured).any(axis=0).all():
        raise ValueError(f"folds: {folds} folds of {items} items hold no pair that varies; expected fewer folds")
    r2 = {subset: (np.nanmean(measured[:, n]), again[:, n]) for n, subset in enumerate(subsets)}
    zero = (np.float64(0), np.zeros(resamples))

    def common(subset: tuple[int, ...]) -> tuple[np.float64, NDArray[np.float64]]:
        rest = set(range(len(names))) - set(subset)
        value, drawn = zero
        for size in range(len(subset) + 1):
            for some in combinations(subset, size):
                term = r2.get(tuple(sorted({*some, *rest})), zero)
                value, drawn = value - (-1) ** size * term[0], drawn - (-1) ** size * term[1]
        return value, drawn

    def named(found: Mapping[tuple[int, ...], tuple[np.float64, NDArray[np.float64]]]) -> dict[tuple[str, ...], Share]:
        return {
            tuple(names[place] for place in subset): Share(float(value), interval(drawn))
            for subset, (value, drawn) in found.items()
        }

    parts = named({subset: common(subset) for subset in subsets})
    return Partition(named(r2), parts, items, len(rows), folds, repeats, non_negative)


def _check(
    human: NDArray[np.float64],
    predictors: Mapping[str, NDArray[np.floating]],
    folds: int,
    repeats: int,
    resamples: int,
) -> None:
    if human.ndim != 2 or human.shape[0] != human.shape[1]:
        raise ValueError(f"human: shape {human.shape}; expected (N, N)")
    if not 2 <= len(predictors) <= MOST_PREDICTORS:
        raise ValueError(f"predictors: {len(predictors)} given; expected 2 or {MOST_PREDICTORS}")
    for name, matrix in predictors.items():
        if matrix.shape != human.shape:
            raise ValueError(f"predictors: {name!r} has shape {matrix.shape}; expected {human.shape} as human")
    if folds < 2 or len(human) < FEWEST_IN_A_FOLD * folds:
        raise ValueError(
            f"folds: {folds} for {len(human)} items; expected at least 2, with {FEWEST_IN_A_FOLD} items in each"
        )
    for name, value in (("repeats", repeats), ("resamples", resamples)):
        if value < 1:
            raise ValueError(f"{name}: {value}; expected at least 1")


def _symmetric(flat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unfold (F, m (m + 1) / 2) sums of products into (F, m, m)."""
    size = int(np.sqrt(2 * flat.shape[1]))
    found = np.empty((len(flat), size, size))
    left, right = np.triu_indices(size)
    found[:, left, right] = found[:, right, left] = flat
    return found


def _held_out_r2(
    train: NDArray[np.float64],
    test: NDArray[np.float64],
    subsets: list[tuple[int, ...]],
    non_negative: bool,
) -> NDArray[np.float64]:
    """R^2 of every subset of predictors from sums of products (F, m, m) over the columns 1, y, x_1, x_2, ...

    The best non-negative weights are the ordinary ones of the best of all smaller subsets whose weights are: with at
    most three predictors they can all be tried.
    """
    usable = (train[:, 0, 0] > 0) & (test[:, 0, 0] > 0)
    train, test = train[usable], test[usable]
    if not len(train):
        return np.full(len(subsets), np.nan)
    means = train[:, 0] / train[:, :1, 0]
    centred = train[:, 1:, 1:] - means[:, 1:, None] * means[:, None, 1:] * train[:, :1, :1]
    size = train.shape[1]
    nothing = np.zeros((len(train), size - 2))
    fits: dict[tuple[int, ...], NDArray[np.float64]] = {(): nothing}
    errors: dict[tuple[int, ...], NDArray[np.float64]] = {(): centred[:, 0, 0]}
    for subset in subsets:
        places = np.array(subset) + 1
        among, with_y = centred[:, places[:, None], places], centred[:, places, 0]
        scale = np.sqrt(np.maximum(np.diagonal(among, axis1=1, axis2=2), 0))
        scale = np.where(scale > _COLLINEAR * np.sqrt(train[:, :1, 0]), scale, np.inf)
        inverse = np.linalg.pinv(among / (scale[:, :, None] * scale[:, None]), rcond=_COLLINEAR, hermitian=True)
        weights = (inverse @ (with_y / scale)[:, :, None])[:, :, 0] / scale
        fits[subset] = nothing.copy()
        fits[subset][:, subset] = weights
        errors[subset] = centred[:, 0, 0] - (weights * with_y).sum(axis=1)
    total = _squares(test, means, nothing).sum()
    found = []
    for subset in subsets:
        chosen = fits[subset]
        if non_negative:
            smaller = [some for size in range(len(subset) + 1) for some in combinations(subset, size)]
            error = np.array([np.where((fits[s] >= 0).all(axis=1), errors[s], np.inf) for s in smaller])
            best = error.argmin(axis=0)
            chosen = np.array([fits[smaller[which]][row] for row, which in enumerate(best)])
        found.append(1 - _squares(test, means, chosen).sum() / total if total > 0 else np.nan)
    return np.array(found)


def _squares(
    test: NDArray[np.float64], means: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum of squared errors (F,) of y = mean + weights (x - mean x), from sums of products."""
    offset = (weights * means[:, 2:]).sum(axis=1) - means[:, 1]
    error = np.column_stack([offset, np.ones(len(weights)), -weights])
    return np.einsum("fa,fab,fb->f", error, test, error)
