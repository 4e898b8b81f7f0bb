"""Split-half reliability against simulated participants, for whom an experiment can be repeated."""

import numpy as np
import pytest

from bgs.data.formats import load_dataset
from bgs.data.geometry import dissimilarity
from bgs.data.judgments import Judgments
from bgs.evaluation.reliability import _pairs_of, split_half

ITEMS, PEOPLE = 16, 20


SPARSE = 40  # items of an experiment in which many pairs are judged once or by one half


def chances(triplets: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """(T, 3) probability that each of the three pairs is left together, by a softmax of its similarity."""
    distance = np.linalg.norm(latent[:, None] - latent[None], axis=-1)
    sides = np.stack([distance[triplets[:, a], triplets[:, b]] for a, b in ((0, 1), (0, 2), (1, 2))], axis=1)
    weights = np.exp(-sides)
    return weights / weights.sum(axis=1, keepdims=True)


def experiment(latent: np.ndarray, number: int, seed: int) -> Judgments:
    rng, items = np.random.default_rng(seed), len(latent)
    triplets = rng.random((number, items)).argsort(axis=1)[:, :3]
    pair = (rng.random((number, 1)) > chances(triplets, latent).cumsum(axis=1)).sum(axis=1)
    order = np.array([[0, 1, 2], [0, 2, 1], [1, 2, 0]])[pair]
    chosen = np.take_along_axis(triplets, order, axis=1)
    return Judgments(tuple(map(str, range(items))), chosen, np.arange(number) % PEOPLE, tuple(map(str, range(PEOPLE))))


def truth(latent: np.ndarray) -> np.ndarray:
    """(P,) dissimilarities that endless judgments would give."""
    items = len(latent)
    together, shown = np.zeros((items, items)), np.zeros((items, items))
    every = np.array([[a, b, c] for a in range(items) for b in range(a) for c in range(b)])
    for (a, b), chance in zip(((0, 1), (0, 2), (1, 2)), chances(every, latent).T, strict=True):
        np.add.at(together, (every[:, a], every[:, b]), chance)
        np.add.at(shown, (every[:, a], every[:, b]), 1)
    rows, columns = np.tril_indices(items, -1)
    return 1 - together[rows, columns] / shown[rows, columns]


def test_predicts_a_repeated_experiment_and_a_perfect_model() -> None:
    latent = np.random.default_rng(0).normal(size=(ITEMS, 3))
    rows, columns = np.tril_indices(ITEMS, -1)
    exact, found, repeats, perfect = truth(latent), [], [], []
    for seed in range(15):
        first, second = (experiment(latent, 1200, 2 * seed + number) for number in (0, 1))
        people = [dissimilarity(part)[rows, columns] for part in (first, second)]
        repeats.append(np.corrcoef(*people)[0, 1])
        perfect.append(np.corrcoef(people[0], exact)[0, 1])
        found.append(split_half(first, splits=20, seed=seed))
    # the figures vary by .04 from one experiment to the next, their means by a quarter of that
    assert np.mean([half.value for half in found]) == pytest.approx(np.mean(repeats), abs=0.03)
    assert np.mean([half.ceiling for half in found]) == pytest.approx(np.mean(perfect), abs=0.03)
    assert np.mean([half.half for half in found]) < np.mean(repeats) - 0.05
    assert found[0].participants == PEOPLE and found[0].splits == 20
    assert found[0].interval[0] < found[0].value < found[0].interval[1]


def test_pairs_that_few_judged_lower_the_ceiling() -> None:
    """Each pair is judged four times, so that half of those in both halves rest on more than the rest."""
    latent = np.random.default_rng(0).normal(size=(SPARSE, 3))
    rows, columns = np.tril_indices(SPARSE, -1)
    exact, found, perfect = truth(latent), [], []
    for seed in range(15):
        people = experiment(latent, 1000, seed)
        human = dissimilarity(people)[rows, columns]
        seen = np.isfinite(human)
        perfect.append(np.corrcoef(human[seen], exact[seen])[0, 1])
        found.append(split_half(people, splits=20, seed=seed))
    assert np.mean([half.ceiling for half in found]) == pytest.approx(np.mean(perfect), abs=0.02)
    assert np.mean([np.sqrt(half.value) for half in found]) > np.mean(perfect) + 0.015


def test_a_split_by_hand() -> None:
    """Two participants divide in one way only, so that every split is the correlation between them."""
    latent = np.random.default_rng(0).normal(size=(ITEMS, 3))
    people = experiment(latent, 800, 0)
    people = Judgments(people.items, people.triplets, people.participants % 2, ("p", "q"))
    rows, columns = np.tril_indices(ITEMS, -1)
    alone = [dissimilarity(people.where(people.participants == who))[rows, columns] for who in (0, 1)]
    both = np.isfinite(alone).all(axis=0)
    r = np.corrcoef(alone[0][both], alone[1][both])[0, 1]
    found = split_half(people, splits=3)
    assert found.half == pytest.approx(r) and found.value == pytest.approx(2 * r / (1 + r))
    covariance = np.cov(alone[0][both], alone[1][both], bias=True)[0, 1]
    whole = dissimilarity(people)[rows, columns]
    assert found.all_pairs == pytest.approx(covariance / whole[np.isfinite(whole)].var())
    assert found.ceiling == pytest.approx(np.sqrt(found.all_pairs))
    assert found.pairs == both.sum()
    assert found.interval == pytest.approx((found.value, found.value))


def test_seeds_repeat() -> None:
    people = experiment(np.random.default_rng(0).normal(size=(ITEMS, 3)), 600, 0)
    assert split_half(people, splits=5, seed=1) == split_half(people, splits=5, seed=1)
    assert split_half(people, splits=5, seed=1) != split_half(people, splits=5, seed=2)


def test_undefined_says_why() -> None:
    triplets = np.array([[0, 1, 2], [3, 4, 5]])
    nobody = split_half(Judgments(tuple("abcdef"), triplets))
    assert (nobody.value, nobody.ceiling, nobody.reason) == (None, None, "the data names no participants")
    one = split_half(Judgments(tuple("abcdef"), triplets, np.array([0, 0]), ("p", "q")))
    assert one.value is None and one.reason == "1 participant; expected at least 2"
    few = split_half(Judgments(tuple("abcdef"), triplets, np.array([0, 1]), ("p", "q")))
    assert few.value is None and few.reason == "halves share 0 pairs; expected at least 10"
    empty = split_half(Judgments(tuple("abcdef"), np.empty((0, 3), np.int64), np.empty(0, np.int64), ("p",)))
    assert empty.value is None and empty.participants == 0
    with pytest.raises(ValueError, match="splits: 0; expected at least 1"):
        split_half(Judgments(tuple("abcdef"), triplets), splits=0)


def test_constant_halves_and_disagreement_have_no_ceiling() -> None:
    every = np.array([[a, b, c] for a in range(6) for b in range(a) for c in range(b)])
    turned = np.concatenate([np.roll(every, turn, axis=1) for turn in range(3)])
    # each participant leaves every pair of every triplet together once: all dissimilarities are 2/3
    constant = Judgments(tuple("abcdef"), np.tile(turned, (2, 1)), np.repeat([0, 1], len(turned)), ("p", "q"))
    found = split_half(constant, splits=4)
    assert found.value is None and found.reason == "a half does not vary over the pairs"
    opposed = Judgments(tuple("abcdef"), np.concatenate([every, every[:, ::-1]]), np.repeat([0, 1], 20), ("p", "q"))
    found = split_half(opposed, splits=4)
    assert found.value < 0 and found.ceiling is None and "halves do not agree" in found.reason


def test_pairs_are_numbered_alike_whatever_the_order() -> None:
    shown, together = _pairs_of(Judgments(tuple("abcd"), np.array([[0, 1, 3], [3, 1, 0]])))
    assert shown.tolist() == [[0, 1, 2], [2, 1, 0]]
    assert together.tolist() == [0, 2]


def test_real_participants(social_data) -> None:
    """Five splits elsewhere gave r .35 and .52 corrected; a hundred here, over pairs that both halves saw."""
    judgments = load_dataset(social_data).judgments
    found = split_half(judgments)
    assert found.half == pytest.approx(0.333, abs=0.01)
    assert found.value == pytest.approx(0.500, abs=0.01)
    assert found.all_pairs == pytest.approx(0.462, abs=0.01)
    assert found.participants == 215
    assert split_half(judgments, method="spearman").value == pytest.approx(0.486, abs=0.01)
