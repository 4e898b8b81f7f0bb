from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bgs.data.judgments import MOST_ITEMS, Dataset, Judgments, Ratings

ITEMS = tuple("abcdef")


def judgments(triplets, participants=None, names=()):
    return Judgments(ITEMS, np.array(triplets), participants, names)


def random_judgments(items: int, number: int, seed: int = 0) -> Judgments:
    generator = np.random.default_rng(seed)
    triplets = np.array([generator.choice(items, 3, replace=False) for _ in range(number)])
    return Judgments(tuple(map(str, range(items))), triplets, generator.integers(0, 4, number), tuple("wxyz"))


def test_arrays_become_int64_and_names_tuples():
    made = Judgments(list("abc"), np.array([[0, 1, 2]], np.uint8), np.array([0], np.int32), ["p"])
    assert made.triplets.dtype == made.participants.dtype == np.int64
    assert made.items == ("a", "b", "c")
    assert made.participant_names == ("p",)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"triplets": [[0, 1]]}, r"triplets: shape \(1, 2\), expected \(T, 3\)"),
        ({"triplets": [0, 1, 2]}, r"triplets: shape \(3,\)"),
        ({"triplets": [[0.0, 1.0, 2.0]]}, "triplets: float64 values, expected integers"),
        ({"triplets": [[0, 1, 2], [5, 6, 1]]}, r"triplets: index 6 out of range for 6 items \(row 1\)"),
        ({"triplets": [[0, 1, 2], [0, 1, -1]]}, r"triplets: index -1 out of range for 6 items \(row 1\)"),
        ({"triplets": [[0, 1, 2], [3, 4, 3]]}, r"triplets: \[3, 4, 3\] repeats an item \(row 1\)"),
        ({"items": ("a", "b", "a")}, "items: 'a' occurs more than once"),
        ({"items": range(MOST_ITEMS + 1)}, "items: 2097153, expected at most 2097152"),
        ({"participants": [0]}, r"participants: index 0 out of range for 0 participant_names \(row 0\)"),
        ({"participants": [0, 0], "participant_names": ("p",)}, r"participants: shape \(2,\), expected \(1,\)"),
        ({"participants": [1], "participant_names": ("p",)}, "participants: index 1 out of range for 1"),
        ({"participant_names": ("p",)}, "participants: None, but 1 participant_names"),
        ({"participants": [0], "participant_names": ("p", "p")}, "participant_names: 'p' occurs more than once"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Judgments(**{"items": ITEMS, "triplets": [[0, 1, 2]]} | arguments)


def test_where_takes_a_mask_or_rows():
    made = judgments([[0, 1, 2], [1, 2, 3], [2, 3, 4]], [0, 1, 0], ("p", "q"))
    masked = made.where(np.array([True, False, True]))
    assert masked.triplets.tolist() == [[0, 1, 2], [2, 3, 4]]
    assert masked.participants.tolist() == [0, 0]
    assert masked.items == ITEMS
    assert made.where([2, 2, 0]).triplets.tolist() == [[2, 3, 4], [2, 3, 4], [0, 1, 2]]
    assert len(made.where([])) == 0
    assert judgments([[0, 1, 2]]).where([0]).participants is None


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([True], r"keep: mask of shape \(1,\), expected \(2,\)"),
        ([0, 2], r"keep: index 2 out of range for 2 judgments \(row 1\)"),
        ([-1], "keep: index -1 out of range"),
        ([0.0], "keep: float64 values, expected integers"),
        ([[0]], r"keep: shape \(1, 1\), expected one dimension"),
    ],
)
def test_where_refuses(keep, message):
    with pytest.raises(ValueError, match=message):
        judgments([[0, 1, 2], [1, 2, 3]]).where(keep)


def test_among_keeps_only_triplets_inside():
    made = judgments([[0, 1, 2], [1, 2, 3], [5, 3, 1], [1, 3, 2]], [0, 1, 0, 1], ("p", "q"))
    inside = made.among([3, 2, 1])
    assert inside.triplets.tolist() == [[1, 2, 3], [1, 3, 2]]
    assert inside.participants.tolist() == [1, 1]
    assert inside.items == ITEMS


def test_among_can_renumber_in_the_order_given():
    made = judgments([[0, 1, 2], [1, 2, 3], [5, 3, 1], [1, 3, 2]])
    inside = made.among(np.array([3, 1, 2, 4]), reindex=True)
    assert inside.items == ("d", "b", "c", "e")
    assert inside.triplets.tolist() == [[1, 2, 0], [1, 0, 2]]
    by_name = [[inside.items[row] for row in triplet] for triplet in inside.triplets]
    assert by_name == [["b", "c", "d"], ["b", "d", "c"]]


def test_among_nothing():
    assert len(judgments([[0, 1, 2]]).among([])) == 0


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([0, 1, 1], "items: row 1 is given 2 times"),
        ([0, 6], "items: index 6 out of range for 6 items"),
        (np.ones(6, bool), "items: bool values, expected integers"),
    ],
)
def test_among_refuses(items, message):
    with pytest.raises(ValueError, match=message):
        judgments([[0, 1, 2]]).among(items)


def test_repeats_of_one_triplet_in_every_order():
    repeats = judgments([[4, 0, 2], [0, 4, 2], [2, 4, 0], [0, 2, 4], [1, 2, 3]]).repeats
    assert repeats.triplets.tolist() == [[0, 2, 4], [1, 2, 3]]
    assert repeats.counts.tolist() == [[1, 2, 1], [0, 0, 1]]
    assert repeats.row.tolist() == [0, 0, 0, 0, 1]
    assert len(repeats) == 2


def test_repeats_agree_with_counting_one_by_one():
    made = random_judgments(items=9, number=500)
    expected = Counter()
    for triplet in made.triplets.tolist():
        expected[tuple(sorted(triplet)), triplet[2]] += 1
    repeats = made.repeats
    counted = {
        (tuple(triplet), item): count
        for triplet, counts in zip(repeats.triplets.tolist(), repeats.counts.tolist(), strict=True)
        for item, count in zip(triplet, counts, strict=True)
        if count
    }
    assert counted == dict(expected)
    assert repeats.triplets.tolist() == sorted(repeats.triplets.tolist())
    assert (repeats.triplets[repeats.row] == np.sort(made.triplets, axis=1)).all()


def test_repeats_do_not_overflow_with_the_most_items():
    last = MOST_ITEMS - 1
    made = Judgments(tuple(map(str, range(MOST_ITEMS))), np.array([[last, last - 1, last - 2], [0, last, 1]]))
    assert made.repeats.triplets.tolist() == [[0, 1, last], [last - 2, last - 1, last]]
    assert made.repeats.counts.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_repeats_of_nothing():
    empty = Judgments((), np.empty((0, 3), np.int64))
    assert empty.repeats.triplets.shape == empty.repeats.counts.shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"splits": {"training": np.array([0])}}, "splits: 'training', expected any of train, val, test"),
        ({"splits": {"train": np.array([0, 1]), "test": np.array([1])}}, "item 1 is in train and again in test"),
        ({"splits": {"train": np.array([0, 0])}}, "item 0 is in train and again in train"),
        ({"splits": {"val": np.array([6])}}, "val: index 6 out of range for 6 items"),
        ({"captions": {"z": ("text",)}}, "captions: 'z' is not among the items"),
        ({"ratings": Ratings(("valence",), np.zeros((5, 1)))}, "ratings: 5 rows for 6 items"),
    ],
)
def test_a_dataset_that_does_not_fit_its_items_is_refused(arguments, message):
    fitting = {"splits": {}, "captions": {}, "ratings": None, "folder": Path()}
    with pytest.raises(ValueError, match=message):
        Dataset(judgments([[0, 1, 2]]), **fitting | arguments)


def test_ratings_need_a_column_a_name():
    with pytest.raises(ValueError, match=r"values: shape \(6, 1\), expected \(N, 2\)"):
        Ratings(("valence", "arousal"), np.zeros((6, 1)))
