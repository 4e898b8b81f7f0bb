"""Parts of explained variance against literal regressions, and geometries whose shares are known."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from bgs.data.formats import load_dataset
from bgs.data.geometry import dissimilarity
from bgs.evaluation.evaluate import cosine_similarity
from bgs.evaluation.variance import partition_variance


def symmetric(items: int, seed: int) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).normal(size=(items, items)), 1)
    return upper + upper.T


def literal_r2(human, predictors, fold, non_negative) -> float:
    """Fits and scores pair by pair."""
    errors = total = 0.0
    for number in range(fold.max() + 1):
        train, test = ([], []), ([], [])
        for i in range(len(human)):
            for j in range(i):
                held = int(fold[i] == number) + int(fold[j] == number)
                if held != 1 and np.isfinite(human[i, j]):
                    x, y = test if held else train
                    x.append([matrix[i, j] for matrix in predictors])
                    y.append(human[i, j])
        (x, y), (x_test, y_test) = (tuple(map(np.array, part)) for part in (train, test))
        solve = nnls if non_negative else lambda a, b: np.linalg.lstsq(a, b, rcond=None)
        weights = solve(x - x.mean(axis=0), y - y.mean())[0]
        errors += ((y_test - y.mean() - (x_test - x.mean(axis=0)) @ weights) ** 2).sum()
        total += ((y_test - y.mean()) ** 2).sum()
    return 1 - errors / total


@pytest.mark.parametrize("non_negative", [True, False])
def test_equals_literal_regressions(non_negative: bool) -> None:
    first, second, third = (symmetric(18, seed) for seed in range(3))
    human = 3 + first - 0.5 * second + 0.2 * third + symmetric(18, 3)
    human[2, 7] = human[7, 2] = human[0, 1] = human[1, 0] = np.nan
    found = partition_variance(
        human,
        {"a": first, "b": second, "c": third},
        folds=3,
        repeats=2,
        resamples=2,
        non_negative=non_negative,
        seed=4,
    )
    generator = np.random.Generator(np.random.PCG64(4))
    folds = [generator.permutation(np.arange(18) % 3) for _ in range(2)]
    given = {"a": first, "b": second, "c": third}
    for names, share in found.explained.items():
        expected = np.mean([literal_r2(human, [given[name] for name in names], fold, non_negative) for fold in folds])
        assert share.value == pytest.approx(expected, abs=1e-10), names
    assert found.pairs == 18 * 17 / 2 - 2 and found.items == 18
    r2 = {"".join(names): share.value for names, share in found.explained.items()}
    parts = {"".join(names): share.value for names, share in found.parts.items()}
    assert parts["a"] == pytest.approx(r2["abc"] - r2["bc"])
    assert parts["ab"] == pytest.approx(r2["ac"] + r2["bc"] - r2["c"] - r2["abc"])
    assert parts["abc"] == pytest.approx(sum(r2[n] for n in ("a", "b", "c", "abc")) - r2["ab"] - r2["ac"] - r2["bc"])
    assert len(parts) == 7 and sum(parts.values()) == pytest.approx(r2["abc"])


def test_shares_that_are_known() -> None:
    """y = u + v + w + noise, four parts of equal variance; one model sees u and v, the other v and w.

    R^2 of u + v is (cov / sd)^2 = (2 / sqrt 2)^2 / 4 = 1/2, the same for v + w. Together, with c = 1/2 their
    correlation, R^2 = (1/2 + 1/2 - 2 * 1/2 * 1/2) / (1 - 1/4) = 2/3: unique 1/6 each, shared 1/3.
    """
    u, v, w, noise = (symmetric(120, seed) for seed in range(4))
    given = {"first": u + v, "second": v + w}
    found = partition_variance(u + v + w + noise, given, repeats=5, resamples=200)
    expected = {("first",): 1 / 6, ("second",): 1 / 6, ("first", "second"): 1 / 3}
    for names, share in found.parts.items():
        assert share.value == pytest.approx(expected[names], abs=0.03)
        assert share.ci95[0] < expected[names] < share.ci95[1]
    assert found.explained["first", "second"].value == pytest.approx(2 / 3, abs=0.03)


def test_held_out_items_are_not_explained_by_chance_or_memory() -> None:
    human, unrelated, reversed_ = symmetric(40, 0), symmetric(40, 1), -symmetric(40, 0)
    found = partition_variance(human, {"unrelated": unrelated, "reversed": reversed_}, repeats=3, resamples=20)
    assert abs(found.explained["unrelated",].value) < 0.02
    assert found.explained["reversed",].value == pytest.approx(0, abs=1e-12)
    free = partition_variance(
        human, {"unrelated": unrelated, "reversed": reversed_}, repeats=3, resamples=20, non_negative=False
    )
    assert free.explained["reversed",].value == pytest.approx(1)


def test_one_geometry_twice_or_a_constant_one_adds_nothing() -> None:
    first = symmetric(30, 0)
    human = first + symmetric(30, 1)
    for second in (2 * first + 1, np.ones((30, 30))):
        found = partition_variance(human, {"a": first, "b": second}, repeats=2, resamples=10)
        assert found.explained["a", "b"].value == pytest.approx(found.explained["a",].value, abs=1e-9)
        assert found.parts["b",].value == pytest.approx(0, abs=1e-9)
    twice = partition_variance(human, {"a": first, "b": first}, repeats=2, resamples=10)
    assert twice.parts["a", "b"].value == pytest.approx(twice.explained["a",].value, abs=1e-9)


def test_seeds_repeat() -> None:
    human, first, second = (symmetric(20, seed) for seed in range(3))
    one, same, other = (
        partition_variance(human, {"a": first, "b": second}, repeats=2, resamples=20, seed=seed) for seed in (1, 1, 2)
    )
    assert one == same != other
    assert set(one.to_dict()["parts"]) == {"a", "b", "a + b"}


def test_refuses_what_cannot_be_divided() -> None:
    human, first = symmetric(20, 0), symmetric(20, 1)
    two = {"a": first, "b": first}
    with pytest.raises(ValueError, match="predictors: 1 given; expected 2 or 3"):
        partition_variance(human, {"a": first})
    with pytest.raises(ValueError, match=r"predictors: 'b' has shape \(19, 19\); expected \(20, 20\)"):
        partition_variance(human, {"a": first, "b": symmetric(19, 0)})
    with pytest.raises(ValueError, match="folds: 7 for 20 items"):
        partition_variance(human, two, folds=7)
    with pytest.raises(ValueError, match="nothing to explain"):
        partition_variance(np.full((20, 20), np.nan), two)
    with pytest.raises(ValueError, match="nothing to explain"):
        partition_variance(np.ones((20, 20)), two)
    with pytest.raises(ValueError, match="resamples: 0"):
        partition_variance(human, two, resamples=0)


def test_real_ratings_explain_some(social_data) -> None:
    dataset = load_dataset(social_data)
    rows = dataset.splits["train"]
    human = dissimilarity(dataset.judgments)[np.ix_(rows, rows)]
    names = np.array(dataset.ratings.names)
    social = np.isin(names, ["communication", "valence", "intimacy", "joint_action", "facingness", "dominance"])
    values = dataset.ratings.values[rows]
    values = torch.from_numpy((values - values.mean(axis=0)) / values.std(axis=0))
    given = {name: 1 - cosine_similarity(values[:, kind]) for name, kind in (("social", social), ("scene", ~social))}
    found = partition_variance(human, given, repeats=4, resamples=30)
    assert found.pairs == 19_266
    assert 0 < found.explained["social", "scene"].value < 0.5
