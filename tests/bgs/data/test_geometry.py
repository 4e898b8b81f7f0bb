import csv
from pathlib import Path

import numpy as np
import pytest

from bgs.data.formats import load_dataset
from bgs.data.geometry import dissimilarity, pair_counts, soft_targets
from bgs.data.judgments import Judgments


def random_judgments(items: int, number: int, seed: int = 0) -> Judgments:
    generator = np.random.default_rng(seed)
    triplets = np.array([generator.choice(items, 3, replace=False) for _ in range(number)])
    return Judgments(tuple(map(str, range(items))), triplets)


def read_matrix(path: Path) -> tuple[list[int], np.ndarray]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return list(map(int, header)), np.array(rows, dtype=np.float64)


@pytest.fixture(scope="module")
def social_judgments(social_data):
    return load_dataset(social_data).judgments


def test_counts_agree_with_counting_one_by_one():
    made = random_judgments(items=8, number=100)
    shown, together = np.zeros((2, 8, 8), dtype=np.int64)
    for i, j, k in made.triplets.tolist():
        for one, other in ((i, j), (i, k), (j, k)):
            shown[one, other] += 1
            shown[other, one] += 1
        together[i, j] += 1
        together[j, i] += 1
    counts = pair_counts(made)
    assert (counts.shown == shown).all()
    assert (counts.together == together).all()
    assert counts.shown.dtype == counts.together.dtype == np.int64


def test_each_judgment_counts_three_pairs_shown_and_one_together():
    counts = pair_counts(random_judgments(items=30, number=1000))
    assert counts.shown.sum() == 2 * 3 * 1000
    assert counts.together.sum() == 2 * 1000
    assert (counts.together <= counts.shown).all()


def test_dissimilarity_by_hand():
    # a b | c twice, a c | b once; d is never shown.
    distances = dissimilarity(Judgments(tuple("abcd"), np.array([[0, 1, 2], [1, 0, 2], [0, 2, 1]])))
    nan = np.nan
    expected = [[0, 1 - 2 / 3, 1 - 1 / 3, nan], [1 - 2 / 3, 0, 1, nan], [1 - 1 / 3, 1, 0, nan], [nan, nan, nan, 0]]
    np.testing.assert_array_equal(distances, expected)
    assert distances.dtype == np.float64


def test_dissimilarity_is_symmetric_and_never_made_up():
    made = random_judgments(items=40, number=150)
    distances = dissimilarity(made)
    np.testing.assert_array_equal(distances, distances.T)
    off_diagonal = ~np.eye(40, dtype=bool)
    assert (np.isnan(distances) == (off_diagonal & (pair_counts(made).shown == 0))).all()
    assert np.isnan(distances).any()


def test_soft_targets_give_each_pair_its_share():
    # Item 5 is odd twice (pair 2 3 stays together), item 2 once (pair 3 5 stays together).
    targets = soft_targets(Judgments(tuple("abcdef"), np.array([[2, 3, 5], [3, 5, 2], [3, 2, 5], [0, 4, 1]])))
    assert targets.triplets.tolist() == [[0, 1, 4], [2, 3, 5]]
    np.testing.assert_array_equal(targets.shares, [[0, 1, 0], [2 / 3, 0, 1 / 3]])
    assert targets.counts.tolist() == [1, 3]


def test_soft_targets_sum_to_the_pairs_left_together():
    made = random_judgments(items=9, number=400)
    targets = soft_targets(made)
    np.testing.assert_allclose(targets.shares.sum(axis=1), 1, rtol=1e-15)
    together = np.zeros((9, 9))
    for triplet, shares, count in zip(targets.triplets, targets.shares, targets.counts, strict=True):
        a, b, c = triplet
        for (one, other), share in zip(((a, b), (a, c), (b, c)), shares, strict=True):
            together[one, other] += share * count
    np.testing.assert_allclose(together + together.T, pair_counts(made).together, rtol=1e-12)


def test_no_judgments():
    empty = Judgments(tuple("abc"), np.empty((0, 3), np.int64))
    assert pair_counts(empty).shown.sum() == 0
    np.testing.assert_array_equal(dissimilarity(empty), np.where(np.eye(3) == 1, 0, np.nan))
    assert soft_targets(empty).shares.shape == (0, 3)


def test_published_counts_are_reproduced_exactly(social_data, social_judgments):
    header, published = read_matrix(social_data / "interim/similarity/count_df_train.csv")
    assert header == list(range(250))
    train = load_dataset(social_data).splits["train"]
    np.testing.assert_array_equal(pair_counts(social_judgments.among(train)).shown, published)


def test_published_similarities_are_reproduced_exactly(social_data, social_judgments):
    header, published = read_matrix(social_data / "interim/similarity/sim_judg_train_rsm.csv")
    train = load_dataset(social_data).splits["train"]
    assert header == train.tolist()

    counts = pair_counts(social_judgments.among(train, reindex=True))
    seen = counts.shown > 0
    np.testing.assert_array_equal((counts.together / np.maximum(counts.shown, 1))[seen], published[seen])
    unobserved = ~seen & ~np.eye(200, dtype=bool)
    assert unobserved.sum() == 2 * 634
    assert (published[unobserved] == 0).all()

    distances = dissimilarity(social_judgments.among(train, reindex=True))
    np.testing.assert_array_equal(distances[~unobserved], (1 - published)[~unobserved])
    assert np.isnan(distances[unobserved]).all()


def test_real_soft_targets(social_judgments):
    targets = soft_targets(social_judgments)
    assert len(targets.counts) == 18_000
    assert (targets.counts > 1).sum() == 4_167
    assert targets.counts.sum() == 24_096
