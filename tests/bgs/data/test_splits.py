import logging
from pathlib import Path

import numpy as np
import pytest

from bgs.data.formats import load_dataset
from bgs.data.judgments import Dataset, Judgments
from bgs.data.splits import SplitCounts, count_judgments, folds, resolve_splits, split_items


def dataset(items: int = 10, **splits: list[int]) -> Dataset:
    judgments = Judgments(tuple(map(str, range(items))), np.array([[0, 1, 2]]))
    return Dataset(judgments, {name: np.array(rows, np.int64) for name, rows in splits.items()}, {}, None, Path())


def test_splits_partition_the_items():
    splits = split_items(250, val=0.1, test=0.2, seed=3)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 175, "val": 25, "test": 50}
    assert sorted(np.concatenate(list(splits.values()))) == list(range(250))
    for rows in splits.values():
        assert (np.diff(rows) > 0).all()


def test_splits_depend_on_the_seed_alone():
    first, again, other = (split_items(100, seed=seed) for seed in (0, 0, 1))
    for name in ("train", "val", "test"):
        assert (first[name] == again[name]).all()
        assert (first[name] != other[name]).any()


def test_a_seed_gives_the_same_split_on_every_machine():
    splits = split_items(10, val=0.2, test=0.2, seed=0)
    assert {name: rows.tolist() for name, rows in splits.items()} == {
        "train": [0, 1, 3, 5, 8, 9],
        "val": [4, 6],
        "test": [2, 7],
    }


def test_a_share_of_nothing_leaves_the_split_out():
    assert split_items(5, val=0, test=0, seed=0)["train"].tolist() == list(range(5))
    assert set(split_items(5, val=0, test=0.2, seed=0)) == {"train", "test"}


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"val": -0.1}, "val: share -0.1"),
        ({"test": 1.0}, "test: share 1.0"),
        ({"val": float("nan")}, "val: share nan"),
        ({"val": 0.01}, "val: a share of 0.01 of 10 items is not one item"),
        ({"val": 0.5, "test": 0.5}, "val and test: shares 0.5 and 0.5 of 10 items leave none to train on"),
    ],
)
def test_impossible_shares_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        split_items(10, **shares, seed=0)


@pytest.mark.parametrize(("items", "k"), [(200, 5), (11, 4), (5, 5)])
def test_folds_hold_out_every_item_once(items, k):
    rows = np.arange(items) * 3 + 1
    made = folds(rows, k, seed=2)
    assert len(made) == k
    assert sorted(np.concatenate([held_out for _, held_out in made])) == rows.tolist()
    sizes = [len(held_out) for _, held_out in made]
    assert max(sizes) - min(sizes) <= 1
    for train, held_out in made:
        assert sorted([*train, *held_out]) == rows.tolist()
        assert (np.diff(train) > 0).all()


def test_folds_depend_on_the_seed_alone():
    first, again, other = (folds(range(50), 5, seed) for seed in (0, 0, 1))
    assert all((one[1] == two[1]).all() for one, two in zip(first, again, strict=True))
    assert any((one[1] != two[1]).any() for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("items", "k", "message"),
    [
        (range(10), 1, "k: 1 folds of 10 items, expected 2 to 10"),
        (range(10), 11, "k: 11 folds"),
        ([1, 2, 2], 2, "items: int64 array"),
        ([0.5, 1.5], 2, "items: float64 array"),
        (7, 2, "items: int64 array"),
    ],
)
def test_impossible_folds_are_refused(items, k, message):
    with pytest.raises(ValueError, match=message):
        folds(items, k, seed=0)


def test_the_splits_of_the_source_are_honoured():
    given = {"train": [1, 2, 3], "val": [4, 5], "test": [6]}
    splits = resolve_splits(dataset(**given), seed=0)
    assert {name: rows.tolist() for name, rows in splits.items()} == given


def test_a_missing_val_is_carved_out_of_train():
    splits = resolve_splits(dataset(train=[0, 1, 2, 3, 5, 7, 8, 9], test=[4, 6]), val_share=0.25, seed=0)
    assert list(splits) == ["train", "val", "test"]
    assert splits["test"].tolist() == [4, 6]
    assert len(splits["val"]) == 2
    assert sorted([*splits["train"], *splits["val"]]) == [0, 1, 2, 3, 5, 7, 8, 9]


def test_no_val_where_none_is_asked_for():
    splits = resolve_splits(dataset(train=[0, 1, 2], test=[4, 6]), val_share=0, seed=0)
    assert {name: rows.tolist() for name, rows in splits.items()} == {"train": [0, 1, 2], "test": [4, 6]}


def test_train_is_what_the_source_does_not_hold_out():
    splits = resolve_splits(dataset(test=[0, 9]), val_share=0.25, seed=0)
    assert splits["test"].tolist() == [0, 9]
    assert sorted([*splits["train"], *splits["val"]]) == list(range(1, 9))


def test_everything_is_carved_where_the_source_defines_nothing():
    splits = resolve_splits(dataset(), val_share=0.2, test_share=0.3, seed=4)
    expected = split_items(10, val=0.2, test=0.3, seed=4)
    assert all((splits[name] == expected[name]).all() for name in ("train", "val", "test"))


def test_judgments_are_counted_by_split():
    judgments = Judgments(
        tuple("abcdefg"), np.array([[0, 1, 2], [2, 1, 0], [0, 1, 3], [3, 4, 5], [0, 1, 6], [6, 3, 4]])
    )
    counts = count_judgments(judgments, {"train": np.array([0, 1, 2]), "test": np.array([3, 4, 5])})
    assert counts == SplitCounts(items={"train": 3, "test": 3}, within={"train": 2, "test": 1}, crossing=3)
    assert str(counts) == "train 3 items, 2 judgments; test 3 items, 1 judgments; 3 judgments cross splits"


def test_counts_agree_with_selection():
    generator = np.random.default_rng(0)
    triplets = np.array([generator.choice(30, 3, replace=False) for _ in range(500)])
    judgments = Judgments(tuple(map(str, range(30))), triplets)
    splits = split_items(30, seed=0)
    counts = count_judgments(judgments, splits)
    assert counts.within == {name: len(judgments.among(rows)) for name, rows in splits.items()}
    assert counts.crossing + sum(counts.within.values()) == 500


def test_overlapping_splits_are_refused():
    with pytest.raises(ValueError, match="item 1 is in train and again in test"):
        count_judgments(dataset().judgments, {"train": np.array([0, 1]), "test": np.array([1])})


def test_real_splits(social_data, caplog):
    data = load_dataset(social_data)
    assert count_judgments(data.judgments, {"train": data.splits["train"]}).within["train"] == 24_096
    with caplog.at_level(logging.INFO):
        splits = resolve_splits(data, val_share=0.2, seed=0)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 160, "val": 40, "test": 50}
    assert (splits["test"] == data.splits["test"]).all()
    assert set(splits["train"]) | set(splits["val"]) == set(data.splits["train"])
    assert "judgments cross splits" in caplog.text


def test_five_folds_of_the_real_training_clips_leave_about_900_held_out_judgments(social_data):
    data = load_dataset(social_data)
    held_out = sum(len(data.judgments.among(rows)) for _, rows in folds(data.splits["train"], 5, seed=0))
    assert 800 < held_out < 1000
