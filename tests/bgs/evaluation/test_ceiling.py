from itertools import permutations
from math import isnan

import numpy as np
import pytest

from bgs.data.formats import load_dataset
from bgs.data.judgments import Judgments
from bgs.evaluation.ceiling import Ceiling, odd_one_out_ceiling

ITEMS = tuple("abcdef")


def test_by_hand():
    # Triplet 0 1 2: odd 2, 2, 0; triplet 3 4 5: odd 3, 4; triplet 0 1 5 judged once.
    triplets = np.array([[0, 1, 2], [1, 0, 2], [1, 2, 0], [4, 5, 3], [3, 5, 4], [0, 1, 5]])
    assert odd_one_out_ceiling(Judgments(ITEMS, triplets)) == Ceiling(
        lower=(1 / 3 + 0) / 2, upper=(2 / 3 + 1 / 2) / 2, triplets=2
    )


def test_agreeing_with_oneself_is_not_agreement_between_people():
    triplets = np.array([[0, 1, 2], [0, 1, 2], [1, 2, 0], [3, 4, 5], [3, 4, 5]])
    ceiling = odd_one_out_ceiling(Judgments(ITEMS, triplets, np.array([0, 0, 1, 1, 1]), ("p", "q")))
    assert ceiling.lower == 0
    assert ceiling.upper == (2 / 3 + 1) / 2
    assert ceiling.triplets == 2


def test_unanimous_people_can_be_predicted_perfectly():
    triplets = np.array([[0, 1, 2], [1, 0, 2]])
    assert odd_one_out_ceiling(Judgments(ITEMS, triplets, np.array([0, 1]), ("p", "q"))) == Ceiling(1.0, 1.0, 1)


def test_agrees_with_leaving_each_judgment_out():
    generator = np.random.default_rng(0)
    triplets = np.array([generator.choice(6, 3, replace=False) for _ in range(200)])
    people = generator.integers(0, 7, 200)
    by_triplet: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for triplet, person in zip(triplets.tolist(), people.tolist(), strict=True):
        by_triplet.setdefault(tuple(sorted(triplet)), []).append((person, triplet[2]))
    lower = []
    for answers in by_triplet.values():
        pairs = [(one, other) for one, other in permutations(answers, 2) if one[0] != other[0]]
        if pairs:
            lower.append(np.mean([one[1] == other[1] for one, other in pairs]))
    ceiling = odd_one_out_ceiling(Judgments(ITEMS, triplets, people, tuple("abcdefg")))
    assert ceiling.lower == pytest.approx(np.mean(lower), rel=1e-12)
    assert ceiling.lower < ceiling.upper


def test_undefined_without_repeats():
    for triplets in (np.empty((0, 3), np.int64), np.array([[0, 1, 2], [1, 2, 3]])):
        ceiling = odd_one_out_ceiling(Judgments(ITEMS, triplets))
        assert isnan(ceiling.lower)
        assert isnan(ceiling.upper)
        assert ceiling.triplets == 0


def test_lower_is_undefined_where_only_one_participant_repeats():
    ceiling = odd_one_out_ceiling(Judgments(ITEMS, np.array([[0, 1, 2], [0, 1, 2]]), np.array([0, 0]), ("p",)))
    assert isnan(ceiling.lower)
    assert ceiling.upper == 1


def test_real_modal_agreement(social_data):
    ceiling = odd_one_out_ceiling(load_dataset(social_data).judgments)
    assert ceiling.triplets == 4_167
    assert ceiling.upper == pytest.approx(0.768, abs=5e-4)
    assert 1 / 3 < ceiling.lower < ceiling.upper
