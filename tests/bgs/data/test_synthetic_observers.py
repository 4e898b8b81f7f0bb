"""Simulated participants: they choose as their formula says, and the ceiling is what it says of their choices."""

from __future__ import annotations

from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest

from bgs.data.synthetic.latents import LATENTS, Stream, draw_scenarios, stream
from bgs.data.synthetic.observers import Observers, load_observers, make_observers
from bgs.data.synthetic.trials import assign, draw_mixed_triplets, draw_triplets, unrank_pairs, unrank_triplets


def panel(clips: int = 40, participants: int = 6, variation: float = 0.4) -> Observers:
    latents = np.array([scenario.latents for scenario in draw_scenarios(clips, 0)])
    return make_observers(latents, participants, stream(0, Stream.OBSERVERS), variation=variation)


def probabilities_by_hand(observers: Observers, triplet: list[int], participant: int) -> list[float]:
    weights = observers.weights[participant]
    powers = []
    for pair in combinations(triplet, 2):
        difference = observers.positions[pair[0]] - observers.positions[pair[1]]
        distance = np.sqrt((weights * difference**2).sum() / weights.sum())
        powers.append(np.exp(-distance / observers.temperature))
    return [power / sum(powers) for power in powers]


def test_probabilities_are_the_softmax_of_similarity() -> None:
    observers = panel()
    triplets, participants = np.array([[3, 1, 20], [7, 8, 9]]), np.array([2, 5])
    expected = [probabilities_by_hand(observers, t, p) for t, p in zip(triplets.tolist(), [2, 5], strict=True)]
    np.testing.assert_allclose(observers.probabilities(triplets, participants), expected, rtol=1e-12)


def test_unnamed_participant_is_the_mean_over_the_panel() -> None:
    observers, triplet = panel(), [4, 30, 11]
    expected = np.mean([probabilities_by_hand(observers, triplet, participant) for participant in range(6)], axis=0)
    np.testing.assert_allclose(observers.probabilities(np.array([triplet]))[0], expected, rtol=1e-12)


def test_choices_come_at_the_frequencies_of_the_softmax() -> None:
    observers, trials = panel(), 40_000
    triplets, participants = np.tile([12, 5, 33], (trials, 1)), np.full(trials, 1)
    chosen = observers.choose(triplets, participants, np.random.default_rng(0))
    similar_12_5, similar_12_33, similar_5_33 = probabilities_by_hand(observers, [12, 5, 33], 1)
    for odd, expected in ((33, similar_12_5), (5, similar_12_33), (12, similar_5_33)):
        assert abs((chosen == odd).mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / trials)


@pytest.mark.parametrize("variation", [0.0, 0.5])
def test_exact_ceiling_is_what_the_ideal_answer_scores(variation: float) -> None:
    observers, rng = panel(variation=variation), np.random.default_rng(1)
    distinct = draw_triplets(np.arange(40), 200, rng)
    ceiling = observers.ceiling(distinct)
    triplets = np.repeat(distinct, 400, axis=0)
    first, second = (observers.choose(triplets, rng.integers(6, size=len(triplets)), rng) for _ in range(2))
    rank = np.repeat(observers.probabilities(distinct).argsort(axis=1).argsort(axis=1), 400, axis=0)
    odd = (triplets == first[:, None]).argmax(axis=1)  # the pair that leaves out item k stands at 2 - k
    taken = rank[np.arange(len(rank)), 2 - odd]
    others = np.stack([rank[np.arange(len(rank)), 2 - (odd + step) % 3] for step in (1, 2)], axis=1)
    error = 4 / np.sqrt(len(triplets))  # four standard errors at most
    assert abs((taken == 2).mean() - ceiling.three_way) < 0.5 * error
    assert abs((taken[:, None] > others).mean() - ceiling.two_way) < 0.5 * error
    assert abs((first == second).mean() - ceiling.agreement) < 0.5 * error


def test_ceiling_weighs_repeats() -> None:
    observers = panel(variation=0.0)
    one, other = (observers.ceiling(np.array([triplet])) for triplet in ([0, 1, 2], [3, 4, 5]))
    both = observers.ceiling(np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0], [3, 4, 5]]))
    assert both.three_way == pytest.approx((3 * one.three_way + other.three_way) / 4)
    assert (both.judgments, both.distinct_triplets) == (4, 2)


def test_default_ceiling_is_about_four_fifths() -> None:
    for seed in range(3):
        latents = np.array([scenario.latents for scenario in draw_scenarios(250, seed)])
        observers = make_observers(latents, 215, stream(seed, Stream.OBSERVERS))
        triplets = draw_triplets(np.arange(250), 20_000, np.random.default_rng(seed))
        assert observers.ceiling(triplets).three_way == pytest.approx(0.80, abs=0.02)


def test_ceiling_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"triplets: shape \(0, 3\), expected"):
        panel().ceiling(np.empty((0, 3), dtype=np.int64))


def test_constant_latents_are_no_evidence() -> None:
    observers = make_observers(np.ones((5, len(LATENTS))), 2, np.random.default_rng(0))
    np.testing.assert_allclose(observers.probabilities(np.array([[0, 1, 2]])), 1 / 3)


def test_loading_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"observers\.json: not found"):
        load_observers(tmp_path)


def test_ranks_reach_every_pair_and_triplet_once() -> None:
    triplets = unrank_triplets(np.arange(comb(9, 3)))
    assert sorted(map(tuple, triplets.tolist())) == list(combinations(range(9), 3))
    pairs = unrank_pairs(np.arange(comb(9, 2)))
    assert sorted(map(tuple, pairs.tolist())) == list(combinations(range(9), 2))


def test_large_ranks_are_exact() -> None:
    last = comb(5000, 3) - 1
    assert unrank_triplets(np.array([last])).tolist() == [[4997, 4998, 4999]]


def test_repeats_are_shared_out_as_in_the_published_data() -> None:
    triplets = draw_triplets(np.arange(100, 300), 24_000, np.random.default_rng(0))
    distinct, counts = np.unique(triplets, axis=0, return_counts=True)
    assert triplets.min() >= 100
    assert len(distinct) == 18_000
    assert (counts > 1).sum() == 4_140
    assert counts.sum() == 24_000


def test_more_judgments_than_triplets_repeat_them_all() -> None:
    triplets = draw_triplets(np.arange(4), 50, np.random.default_rng(0))
    assert triplets.shape == (50, 3)
    assert len(np.unique(triplets, axis=0)) == 4


def test_mixed_triplets_have_one_or_two_test_items() -> None:
    train, test = np.array([0, 2, 4, 6, 8, 10]), np.array([1, 3, 5])
    triplets = draw_mixed_triplets(train, test, 500, np.random.default_rng(0))
    in_test = np.isin(triplets, test).sum(axis=1)
    assert set(in_test.tolist()) == {1, 2}
    assert len(np.unique(triplets, axis=0)) == comb(9, 3) - comb(6, 3) - comb(3, 3)


def test_trials_are_shared_evenly_and_nobody_sees_a_triplet_twice() -> None:
    rng = np.random.default_rng(0)
    triplets = draw_triplets(np.arange(30), 1_000, rng)
    trials = assign(triplets, 40, rng)
    assert sorted(map(sorted, trials.triplets.tolist())) == sorted(map(sorted, triplets.tolist()))
    assert np.bincount(trials.participants).tolist() == [25] * 40
    seen = np.column_stack([np.sort(trials.triplets, axis=1), trials.participants])
    assert len(np.unique(seen, axis=0)) == 1_000
    places = [(trials.triplets.argmax(axis=1) == place).mean() for place in range(3)]
    assert max(places) - min(places) < 0.1  # the order shown is random
