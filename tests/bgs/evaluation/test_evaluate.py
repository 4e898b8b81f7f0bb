"""Accuracy, correlation and intervals against loops, scipy and literal resampling."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from bgs.data.geometry import dissimilarity
from bgs.data.judgments import Judgments
from bgs.evaluation import evaluate as evaluate_module
from bgs.evaluation.bootstrap import interval, resample_items
from bgs.evaluation.evaluate import Held, cosine_similarity, evaluate
from bgs.evaluation.odd_one_out import resampled_accuracy, score_judgments
from bgs.evaluation.reliability import split_half
from bgs.evaluation.rsa import Method, correlate
from bgs_kernels import rsa_correlation


def judgments(items: int, number: int, seed: int = 0) -> Judgments:
    rng = np.random.default_rng(seed)
    triplets = np.array([rng.choice(items, 3, replace=False) for _ in range(number)])
    return Judgments(items=tuple(f"clip{row}" for row in range(items)), triplets=triplets)


def test_scores_share_ties() -> None:
    similarity = np.array([[1, 0.5, 0.5, 0.1], [0.5, 1, 0.5, 0.1], [0.5, 0.5, 1, 0.5], [0.1, 0.1, 0.5, 1]])
    scores = score_judgments(similarity, np.array([[0, 1, 2], [0, 1, 3], [0, 3, 1], [1, 2, 3]]))
    # all three tie; a clear answer; the wrong answer; the unchosen pair ties with one of the others
    assert scores.three_way.tolist() == pytest.approx([1 / 3, 1, 0, 1 / 2])
    assert scores.two_way.tolist() == [0.5, 1, 0.25, 0.75]


def test_collapsed_embeddings_score_chance() -> None:
    collapsed = torch.full((9, 7), 0.3).add_(torch.rand(9, 1) * 1e-9)
    found = evaluate([Held(collapsed, judgments(9, 60))], resamples=20).measures
    assert found["odd_one_out.three_way"].value == pytest.approx(1 / 3)
    assert found["odd_one_out.two_way"].value == pytest.approx(1 / 2)
    assert found["rsa.pearson"].value is None


def test_embeddings_that_are_not_finite_have_no_score() -> None:
    embeddings = torch.randn(9, 4)
    embeddings[2, 1] = torch.nan
    found = evaluate([Held(embeddings, judgments(9, 60))], resamples=20).measures
    assert all(measure.value is None for measure in found.values())


def test_values_equal_loops_and_scipy() -> None:
    people, embeddings = judgments(14, 300), torch.randn(14, 5, generator=torch.Generator().manual_seed(1))
    similarity = cosine_similarity(embeddings)
    three, two = [], []
    for i, j, k in people.triplets:
        three.append(similarity[i, j] > max(similarity[i, k], similarity[j, k]))
        two.append((similarity[i, j] > similarity[i, k]) / 2 + (similarity[i, j] > similarity[j, k]) / 2)
    human, model = [], []
    rdm = dissimilarity(people)
    for i, j in itertools.combinations(range(14), 2):
        if np.isfinite(rdm[i, j]):
            human.append(rdm[i, j])
            model.append(1 - similarity[i, j])
    found = evaluate([Held(embeddings, people)], resamples=50).measures
    assert found["odd_one_out.three_way"].value == pytest.approx(np.mean(three), abs=1e-12)
    assert found["odd_one_out.two_way"].value == pytest.approx(np.mean(two), abs=1e-12)
    assert found["rsa.pearson"].value == pytest.approx(stats.pearsonr(model, human).statistic, abs=1e-12)
    assert found["rsa.spearman"].value == pytest.approx(stats.spearmanr(model, human).statistic, abs=1e-12)
    assert found["rsa.pearson"].n == len(model)


def tau_a(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's definition, couple by couple."""
    couples = list(itertools.combinations(range(len(x)), 2))
    return sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in couples) / len(couples)


REFERENCES = {
    "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
    "cosine": lambda x, y: x @ y / (np.linalg.norm(x) * np.linalg.norm(y)),
    "tau-a": tau_a,
}


@pytest.mark.parametrize("method", REFERENCES)
def test_weights_stand_for_copies(method: Method) -> None:
    rng = np.random.default_rng(0)
    model, human = rng.integers(0, 6, 40).astype(float), rng.integers(0, 4, 40).astype(float)
    weights = rng.integers(0, 4, (5, 40)).astype(float)
    found = correlate(model, human, weights, method)
    for row, value in zip(weights.astype(int), found, strict=True):
        expected = REFERENCES[method](np.repeat(model, row), np.repeat(human, row))
        assert value == pytest.approx(expected, abs=1e-12)
    assert correlate(model, human, method=method)[0] == pytest.approx(REFERENCES[method](model, human), abs=1e-12)


@pytest.mark.parametrize("method", ["pearson", "spearman", "cosine", "tau-a"])
def test_methods_agree_with_the_kernels(method: Method) -> None:
    """The kernels define the training loss; what is trained and what is measured have to be the same number."""
    rng = np.random.default_rng(3)
    model, human = (np.triu(rng.integers(1, 8, (1, 12, 12)), 1).astype(float) for _ in range(2))
    model, human = (rdm + rdm.transpose(0, 2, 1) for rdm in (model, human))
    rows, columns = np.triu_indices(12, 1)
    kernel = rsa_correlation(torch.from_numpy(model), torch.from_numpy(human), metric="precomputed", method=method)
    ours = correlate(model[0, rows, columns], human[0, rows, columns], method=method)
    assert ours[0] == pytest.approx(kernel.item(), abs=1e-12)


def test_methods_are_chosen_and_unknown_ones_refused() -> None:
    held = [Held(torch.randn(12, 4), judgments(12, 300))]
    found = evaluate(held, resamples=10, methods=("cosine", "tau-a")).measures
    assert {name for name in found if name.startswith("rsa.")} == {"rsa.cosine", "rsa.tau-a"}
    assert found["rsa.cosine"].chance is None and found["rsa.cosine"].value > 0.5
    assert abs(found["rsa.tau-a"].value) < 0.5
    with pytest.raises(ValueError, match="methods: 'euclid'; expected any of pearson, spearman, cosine, tau-a"):
        evaluate(held, methods=("euclid",))
    with pytest.raises(ValueError, match="whole numbers"):
        correlate(np.arange(4.0), np.arange(4.0), np.full((1, 4), 0.5), "tau-a")


def test_a_reversed_geometry_explains_nothing() -> None:
    people, embeddings = judgments(14, 600), torch.randn(14, 3, generator=torch.Generator().manual_seed(2))
    found = evaluate([Held(embeddings, people)], resamples=200)
    r = found.measures["rsa.spearman"].value
    resampled = found.resampled["rsa.explained_variance"]
    assert found.measures["rsa.explained_variance"].value == pytest.approx(max(r, 0) ** 2)
    assert ((found.resampled["rsa.spearman"] < 0) == (resampled == 0)).all() and (resampled == 0).any()


def test_correlation_without_variance_is_undefined() -> None:
    assert np.isnan(correlate(np.full(5, 0.1), np.arange(5.0))[0])
    assert np.isnan(correlate(np.arange(5.0), np.arange(5.0), np.eye(5))).all()


def test_resampled_accuracy_counts_what_can_be_put_together() -> None:
    triplets, scores = np.array([[0, 1, 2], [1, 2, 3]]), np.array([1.0, 0.0])
    total, weight = resampled_accuracy(scores, triplets, np.array([[1.0, 1, 1, 1], [2, 1, 1, 0], [0, 2, 1, 1]]))
    assert total.tolist() == [1, 2, 0]
    assert weight.tolist() == [2, 2, 2]


def test_draws_are_seeded_and_complete() -> None:
    draws = resample_items(20, 100, 3)
    assert (draws.sum(axis=1) == 20).all()
    assert (draws == resample_items(20, 100, 3)).all()
    assert (draws != resample_items(20, 100, 4)).any()


def test_interval_needs_enough_defined_values() -> None:
    assert interval(np.array([np.nan, np.nan, 1.0])) is None
    low, high = interval(np.arange(1001.0)) or (0, 0)
    assert (low, high) == (25, 975)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Items differ in how well they are embedded; the interval over items has to know that."""
    rng, inside, trials = np.random.default_rng(5), 0, 60
    for _ in range(trials):
        items = 40
        latent = rng.normal(size=(items, 3))
        triplets = np.array([rng.choice(items, 3, replace=False) for _ in range(400)])
        distance = np.linalg.norm(latent[:, None] - latent[None], axis=-1)
        sides = np.stack([distance[triplets[:, a], triplets[:, b]] for a, b in ((0, 1), (0, 2), (1, 2))], axis=1)
        pair = sides.argmin(axis=1)
        order = np.array([[0, 1, 2], [0, 2, 1], [1, 2, 0]])[pair]
        people = Judgments(items=tuple(map(str, range(items))), triplets=np.take_along_axis(triplets, order, axis=1))
        noisy = torch.tensor(latent + rng.normal(scale=1.0, size=latent.shape))
        measure = evaluate([Held(noisy, people)], resamples=100).measures["odd_one_out.three_way"]
        assert measure.ci95 is not None
        # .484: the mean over 1,500 such trials, standard error .001
        inside += measure.ci95[0] <= 0.484 <= measure.ci95[1]
    assert inside / trials > 0.85


def test_folds_pool_judgments_and_average_correlations() -> None:
    parts = [
        Held(torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)), judgments(8, number, seed))
        for seed, number in ((0, 40), (1, 10))
    ]
    alone = [evaluate([part], resamples=10).measures for part in parts]
    both = evaluate(parts, resamples=10).measures
    name = "odd_one_out.three_way"
    assert both[name].n == 50
    assert both[name].value == pytest.approx((40 * alone[0][name].value + 10 * alone[1][name].value) / 50)
    name = "rsa.pearson"
    sizes = [measures[name].n for measures in alone]
    mean = np.average([measures[name].value for measures in alone], weights=sizes)
    assert both[name].value == pytest.approx(mean)


def test_difference_is_paired() -> None:
    people, embeddings = judgments(12, 200), torch.randn(12, 4, dtype=torch.float64)
    one, same = (
        evaluate([Held(embeddings, people)], resamples=30),
        evaluate([Held(2 * embeddings, people)], resamples=30),
    )
    for measure in one.minus(same).values():
        assert measure.value == pytest.approx(0)
        assert measure.ci95 == pytest.approx((0, 0))


def test_intervals_do_not_depend_on_how_many_weights_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [Held(torch.randn(12, 4), judgments(12, 300))]
    whole = evaluate(held, resamples=30)
    monkeypatch.setattr(evaluate_module, "WEIGHTS_AT_A_TIME", 500)  # 7 of the 30 draws over 66 pairs
    parts = evaluate(held, resamples=30)
    for name, values in whole.resampled.items():
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(parts.resampled[name], values)


def test_measures_as_json() -> None:
    found = evaluate([Held(torch.randn(12, 4), judgments(12, 300))], resamples=10).to_dict()
    assert set(found) == {"odd_one_out", "rsa"}
    assert set(found["odd_one_out"]) == {"three_way", "two_way"}
    assert set(found["rsa"]) == {"pearson", "spearman", "explained_variance"}
    assert found["odd_one_out"]["three_way"]["chance"] == pytest.approx(1 / 3)
    assert set(found["odd_one_out"]["three_way"]["ceiling"]) >= {"upper", "triplets"}
    assert set(found["rsa"]["pearson"]) == {"value", "ci95", "n", "chance"}


def test_embeddings_must_fit_the_items() -> None:
    with pytest.raises(ValueError, match=r"shape \(11, 4\); expected one row for each of the 12 items"):
        Held(torch.randn(11, 4), judgments(12, 10))


def test_reliability_is_the_ceiling_of_rsa() -> None:
    held = Held(torch.randn(12, 4), agreeing(12, 400))
    found = evaluate([held], resamples=10, seed=4).measures
    for method in ("pearson", "spearman"):
        half = split_half(held.judgments, method=method, seed=4)
        assert half.all_pairs is not None and half.all_pairs > 0.9
        assert found[f"rsa.{method}"].ceiling == pytest.approx(
            {"upper": half.ceiling, "reliability": half.all_pairs}, rel=1e-14
        )
    # a square is bounded by the reliability itself
    assert found["rsa.explained_variance"].ceiling == {"upper": half.all_pairs, "reliability": half.all_pairs}
    nobody = replace(held.judgments, participants=None, participant_names=())
    assert evaluate([Held(held.embeddings, nobody)], resamples=10).measures["rsa.pearson"].ceiling is None


def agreeing(items: int, number: int) -> Judgments:
    """Judgments by participants who all see items on a line."""
    people = judgments(items, number)
    triplets = np.sort(people.triplets, axis=1)
    low = triplets[:, 1] - triplets[:, 0] > triplets[:, 2] - triplets[:, 1]
    triplets[low] = triplets[low][:, [1, 2, 0]]
    return Judgments(people.items, triplets, np.arange(number) % 8, tuple(map(str, range(8))))
