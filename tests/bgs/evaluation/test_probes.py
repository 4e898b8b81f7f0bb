"""Probes against scikit-learn's own nested cross-validation, and ratings whose predictability is known."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from bgs.data.formats import load_dataset
from bgs.data.splits import folds as divide
from bgs.evaluation.probes import ALPHAS, compare_probes, probe_ratings

FEW = {"permutations": 0, "resamples": 20}


def made(items: int = 60, width: int = 6, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items, width)) * rng.uniform(0.1, 10, width) + rng.normal(size=width)
    signal = (x - x.mean(0)) / x.std(0) @ rng.normal(size=(width, 2)) / np.sqrt(width)
    return x, np.column_stack([signal + noise * rng.normal(size=(items, 2)), rng.normal(size=items)])


def by_scikit_learn(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Held-out predictions, training means and chosen penalties of one rating."""
    predicted, mean, chosen = np.empty(len(y)), np.empty(len(y)), []

    def fit(train, held, alpha):
        scaler = StandardScaler().fit(x[train])
        model = Ridge(alpha=alpha * x.shape[1]).fit(scaler.transform(x[train]), y[train])
        return model.predict(scaler.transform(x[held]))

    for number, (train, held) in enumerate(divide(np.arange(len(y)), 5, seed)):
        inner = divide(train, 5, seed + number + 1)
        errors = [sum(((y[v] - fit(t, v, alpha)) ** 2).sum() for t, v in inner) for alpha in ALPHAS]
        chosen.append(ALPHAS[int(np.argmin(errors))])
        predicted[held], mean[held] = fit(train, held, chosen[-1]), y[train].mean()
    return predicted, mean, chosen


@pytest.mark.parametrize("width", [6, 90])
def test_equals_scikit_learn(width: int) -> None:
    x, y = made(width=width)
    found = probe_ratings(x, y, ("a", "b", "c"), seed=3, **FEW)
    for number, probe in enumerate(found.probes):
        predicted, mean, chosen = by_scikit_learn(x, y[:, number], 3)
        assert probe.alphas == pytest.approx(chosen)
        np.testing.assert_allclose(found.predicted[:, number], predicted, atol=1e-8)
        assert probe.r2 == pytest.approx(
            1 - ((y[:, number] - predicted) ** 2).sum() / ((y[:, number] - mean) ** 2).sum()
        )
        p, t = predicted.copy(), y[:, number].copy()
        for _, held in divide(np.arange(60), 5, 3):
            p[held] -= p[held].mean()
            t[held] -= t[held].mean()
        assert probe.r == pytest.approx(p @ t / np.sqrt(p @ p * (t @ t)))


def test_known_noise_gives_known_r2() -> None:
    """Noise of variance 1 bounds R^2 by the share of the signal, and with many clips ridge reaches that."""
    x, y = made(items=3000, noise=1.0, seed=1)
    signal = np.var(made(items=3000, noise=0.0, seed=1)[1][:, 0])
    found = probe_ratings(x, y, ("a", "b", "c"), **FEW).probes
    assert found[0].r2 == pytest.approx(signal / (signal + 1), abs=0.04)
    assert found[0].r == pytest.approx(np.sqrt(signal / (signal + 1)), abs=0.03)
    assert abs(found[2].r) < 0.06 and found[2].r2 == pytest.approx(0, abs=0.01)
    assert found[0].r_ci95[0] < found[0].r < found[0].r_ci95[1]


def test_permutations_tell_signal_from_none() -> None:
    x, y = made(items=50, noise=0.5)
    signal, _, none = probe_ratings(x, y, ("a", "b", "c"), permutations=199, resamples=10).probes
    assert signal.p == signal.p_corrected == 1 / 200
    assert none.p > 0.05 and none.p_corrected >= none.p


def test_p_is_uniform_without_signal_and_the_correction_controls_the_family() -> None:
    """200 tests at 10 %: 20 +- 4.2 expected; families of 4 ratings, of which 10 % may have any corrected p below."""
    single, family = [], []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(24, 3)), rng.normal(size=(24, 4))
        probes = probe_ratings(
            x, y, "abcd", permutations=59, resamples=1, folds=3, inner_folds=2, alphas=[0.1, 10], seed=seed
        ).probes
        single += [probe.p for probe in probes if probe.p is not None]
        family.append(min(probe.p_corrected for probe in probes if probe.p_corrected is not None))
    assert 0.03 < np.mean(np.array(single) <= 0.1) < 0.17
    assert np.mean(np.array(family) <= 0.1) < 0.25
    assert stats.kstest(single, "uniform").pvalue > 1e-3


def test_intervals_are_of_resampled_clips() -> None:
    x, y = made()
    found = probe_ratings(x, y, ("a", "b", "c"), permutations=0, resamples=300)
    draw = np.random.Generator(np.random.PCG64(0)).multinomial(60, np.full(60, 1 / 60), size=300)[7]
    rows = np.repeat(np.arange(60), draw)
    p, t = found.predicted[rows, 0], y[rows, 0]
    for number in range(5):
        inside = found.fold[rows] == number
        p[inside] -= p[inside].mean()
        t[inside] -= t[inside].mean()
    assert found.resampled[7, 0] == pytest.approx(p @ t / np.sqrt(p @ p * (t @ t)))
    assert found.probes[0].r_ci95 == pytest.approx(tuple(np.percentile(found.resampled[:, 0], (2.5, 97.5))))


def test_comparison_is_paired_on_the_same_folds() -> None:
    x, y = made(items=80, noise=0.3)
    blurred = x + np.random.default_rng(9).normal(size=x.shape) * 2 * x.std(axis=0)
    good, bad = (probe_ratings(given, y, ("a", "b", "c"), permutations=0) for given in (x, blurred))
    assert np.array_equal(good.fold, bad.fold)
    better = compare_probes(good, bad, permutations=199)
    assert better[0].difference == pytest.approx(good.probes[0].r - bad.probes[0].r)
    assert better[0].ci95[0] > 0 and better[0].p == better[0].p_corrected == 1 / 200
    assert better[2].p > 0.05
    same = compare_probes(good, good, permutations=19)
    assert [item.difference for item in same] == [0, 0, 0] and all(item.p == 1 for item in same)
    with pytest.raises(ValueError, match="not of the same clips, ratings and settings"):
        compare_probes(good, probe_ratings(x, y, ("a", "b", "c"), seed=1, permutations=0))
    assert compare_probes(good, bad, permutations=0)[0].p is None


def test_ratings_that_cannot_be_probed_say_why() -> None:
    x, y = made()
    y[:, 1], y[:, 2] = np.nan, 0.1
    y[5, 0] = np.nan
    found = probe_ratings(x, y, ("a", "b", "c"), permutations=5, resamples=5)
    assert found.probes[0].r is not None and 5 not in found.items and len(found.items) == 59
    assert [probe.reason for probe in found.probes[1:]] == ["no clip has this rating", "the rating does not vary"]
    assert found.probes[1].r is None and np.isnan(found.predicted[:, 1]).all()
    assert compare_probes(found, found, permutations=5)[1].difference is None
    constant = probe_ratings(np.ones((60, 4)), y, ("a", "b", "c"), permutations=5, resamples=5).probes[0]
    assert constant.r is None and constant.reason == "predictions do not vary within folds"
    assert constant.r2 == pytest.approx(0)


def test_seeds_repeat() -> None:
    x, y = made()
    one, same, other = (
        probe_ratings(x, y, ("a", "b", "c"), permutations=9, resamples=9, seed=seed).to_dict() for seed in (1, 1, 2)
    )
    assert one == same != other


def test_refuses_what_cannot_be_probed() -> None:
    x, y = made()
    names = ("a", "b", "c")
    with pytest.raises(ValueError, match=r"shapes \(59, 6\) and \(60, 3\)"):
        probe_ratings(x[1:], y, names)
    with pytest.raises(ValueError, match="names: 2 for 3 ratings"):
        probe_ratings(x, y, ("a", "b"))
    x[4, 2] = np.inf
    with pytest.raises(ValueError, match=r"embeddings: not finite \(row 4\)"):
        probe_ratings(x, y, names)
    x, y = made(items=9)
    with pytest.raises(ValueError, match="folds: 5 outer and 5 inner folds of 9 clips"):
        probe_ratings(x, y, names)
    with pytest.raises(ValueError, match="alphas"):
        probe_ratings(x, y, names, alphas=[0.0, 1])


def test_real_ratings_from_one_another(social_data) -> None:
    """Intimacy is told by the other ratings, on 250 clips."""
    ratings = load_dataset(social_data).ratings
    at = ratings.names.index("intimacy")
    others = np.delete(ratings.values, at, axis=1)
    probe = probe_ratings(others, ratings.values[:, [at]], ("intimacy",), permutations=50, resamples=50).probes[0]
    assert probe.r > 0.5 and probe.p == 1 / 51
