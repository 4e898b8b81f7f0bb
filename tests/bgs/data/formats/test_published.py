import numpy as np
import pytest

from bgs.data.cleaning import CHOICE_NOT_SHOWN, MISSING_VALUE, REPEATED_ITEM, CleaningReport
from bgs.data.formats.published import read_published

NAMES = [f"clip{letter}.mp4" for letter in "fedcba"]
TRIPLETS = "participation,task,trial,stim1_name,stim2_name,stim3_name,choice,response_time"


@pytest.fixture
def write(tmp_path):
    """Writes one file of a data set that so far has six clips and one judgment."""

    def write(name, *lines):
        folder = "interim/similarity" if "triplets" in name else "raw/utils"
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    # Not in the order of the index: the index decides.
    write("video_mapping.csv", "index,video_name", *(f"{row},{NAMES[row]}" for row in (3, 0, 5, 1, 2, 4)))
    write("train_triplets.csv", TRIPLETS, "ann,set1,0,0,1,2,0,1.5")
    return write


def test_items_follow_the_index_of_the_mapping(write, tmp_path):
    dataset = read_published(tmp_path)
    assert dataset.items == tuple(NAMES)
    assert dataset.judgments.triplets.tolist() == [[1, 2, 0]]
    assert dataset.judgments.participant_names == ("ann",)
    assert dataset.folder == tmp_path
    assert dataset.splits == {}
    assert dataset.captions == {}
    assert dataset.ratings is None


def test_all_files_of_judgments_are_read(write, tmp_path):
    write("test_triplets.csv", f"triplet_id,{TRIPLETS}", "3,bob,set1,0,3,4,5,4,1.5")
    write("mixed_triplets.csv", f"{TRIPLETS},token", "ann,set1,0,3,4,2,4,1.5,p1", "bob,set1,1,3,3,2,2,1.5,p1")
    write("val_triplets.csv", TRIPLETS, "cat,set1,0,2,1,0,0,1.5")
    write("all_triplets.csv", TRIPLETS, "dan,set1,0,2,1,0,0,1.5")
    judgments = read_published(tmp_path).judgments
    assert judgments.triplets.tolist() == [[1, 2, 0], [2, 1, 0], [3, 5, 4], [3, 2, 4]]
    people = [judgments.participant_names[who] for who in judgments.participants]
    assert people == ["ann", "cat", "bob", "ann"]
    assert judgments.cleaning == CleaningReport(5, 4, {REPEATED_ITEM: 1})


def test_the_file_of_all_judgments_serves_where_no_other_is(write, tmp_path):
    write("train_triplets.csv", TRIPLETS).unlink()
    write("all_triplets.csv", TRIPLETS, "dan,set1,0,2,1,0,0,1.5", "dan,set1,1,4,4,0,0,2.5")
    judgments = read_published(tmp_path).judgments
    assert judgments.triplets.tolist() == [[2, 1, 0]]
    assert judgments.cleaning == CleaningReport(2, 1, {REPEATED_ITEM: 1})


def test_malformed_rows_are_dropped_and_counted(write, tmp_path):
    write(
        "train_triplets.csv",
        TRIPLETS,
        "ann,set1,0,0,1,2,0,1.5",
        "ann,set1,1,0,0,2,2,1.5",
        "ann,set1,2,0,1,2,3,1.5",
        "ann,set1,3,0,,2,2,1.5",
        "ann,set1,4,0.0,1.0,2.0,2.0,",
        "ann,set1,4,0.0,1.0,2.0,NaN,",
        "ann,set1,0,0,1,2,0,1.5",
    )
    judgments = read_published(tmp_path).judgments
    assert judgments.triplets.tolist() == [[1, 2, 0], [0, 1, 2], [1, 2, 0]]
    assert judgments.cleaning == CleaningReport(7, 3, {MISSING_VALUE: 2, REPEATED_ITEM: 1, CHOICE_NOT_SHOWN: 1})


def test_columns_can_be_named(write, tmp_path):
    write("train_triplets.csv", "left,mid,right,picked,who", "0,1,2,1,eve")
    dataset = read_published(tmp_path, items=("left", "mid", "right"), choice="picked", participant="who")
    assert dataset.judgments.triplets.tolist() == [[0, 2, 1]]
    assert dataset.judgments.participant_names == ("eve",)


def test_judgments_of_nobody(write, tmp_path):
    write("train_triplets.csv", "stim1,stim2,stim3,choice", "0,1,2,1")
    assert read_published(tmp_path).judgments.participants is None


def test_splits_go_by_name(write, tmp_path):
    write("train.csv", "video_name", NAMES[4], NAMES[0], NAMES[1])
    write("val.csv", "index,video_name", f"3,{NAMES[3]}")
    write("test.csv", "index,video_name", f"77,{NAMES[5]}")
    splits = read_published(tmp_path).splits
    assert {name: rows.tolist() for name, rows in splits.items()} == {"train": [0, 1, 4], "val": [3], "test": [5]}
    assert splits["train"].dtype == np.int64


def test_captions_are_in_the_order_of_their_index(write, tmp_path):
    write(
        "captions.csv",
        "video_name,caption_index,caption",
        f"{NAMES[2]},10,third",
        f"{NAMES[0]},1,none",
        f'{NAMES[2]},2,"second, really"',
        f"{NAMES[2]},1,first",
    )
    assert read_published(tmp_path).captions == {
        NAMES[0]: ("none",),
        NAMES[2]: ("first", "second, really", "third"),
    }


def test_ratings_are_aligned_with_the_items(write, tmp_path):
    write(
        "annotations.csv",
        "video_name,rating-valence,stimulus_set,captions,rating-agent_distance",
        f"{NAMES[4]},0.25,train,x,",
        f"{NAMES[1]},1,train,x,0.5",
    )
    ratings = read_published(tmp_path).ratings
    assert ratings.names == ("valence", "agent_distance")
    expected = np.full((6, 2), np.nan)
    expected[4, 0], expected[1] = 0.25, (1, 0.5)
    np.testing.assert_array_equal(ratings.values, expected)


ANN = "ann,set1,0,0,1,2,0,1.5"


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "video_mapping.csv",
            ["index,video_name", "0,a", "0,b"],
            "row 3, column 'index': '0', which row 2 has already",
        ),
        ("video_mapping.csv", ["index,video_name", "0,a", "2,b"], "row 3, column 'index': '2', expected each of 0..1"),
        ("video_mapping.csv", ["index,video_name", "0,a", "x,b"], "row 3, column 'index': 'x', expected an integer"),
        ("video_mapping.csv", ["index,video_name", "0,a", ",b"], "row 3, column 'index': '', expected an integer"),
        ("video_mapping.csv", ["index,video_name", "0,a", "1,a"], "row 3, column 'video_name': 'a', which row 2 has"),
        ("video_mapping.csv", ["index,video_name", "0,a", "1,"], "row 3, column 'video_name': '', expected a name"),
        ("video_mapping.csv", ["index,name", "0,a"], "no column 'video_name'"),
        (
            "train_triplets.csv",
            [TRIPLETS, ANN, "ann,set1,1,0,six,2,0,1.5"],
            "row 3, column 'stim2_name': 'six', expected an integer",
        ),
        (
            "train_triplets.csv",
            [TRIPLETS, ANN, "ann,set1,1,0,6,2,0,1.5"],
            "row 3, column 'stim2_name': '6', expected an index 0..5 of video_mapping.csv",
        ),
        (
            "train_triplets.csv",
            [TRIPLETS, "ann,set1,1,0,1,2,-1,1.5"],
            "row 2, column 'choice': '-1', expected an index",
        ),
        ("train_triplets.csv", [TRIPLETS.replace("choice,", ""), ANN], "no columns look like the choice"),
        ("test_triplets.csv", [TRIPLETS.replace("choice", "odd"), ANN], "no column 'choice'"),
        (
            "train.csv",
            ["video_name", NAMES[0], "other.mp4"],
            "row 3, column 'video_name': 'other.mp4', expected a name",
        ),
        ("train.csv", ["video_name", NAMES[0], NAMES[0]], "row 3, column 'video_name': .* which row 2 has already"),
        (
            "captions.csv",
            ["video_name,caption_index,caption", "x,1,text"],
            "row 2, column 'video_name': 'x', expected a",
        ),
        (
            "captions.csv",
            ["video_name,caption_index,caption", f"{NAMES[0]},one,text"],
            "row 2, column 'caption_index': 'one', expected an integer",
        ),
        (
            "captions.csv",
            ["video_name,caption_index,caption", f"{NAMES[0]},1,x", f"{NAMES[1]},1,x", f"{NAMES[0]},1,y"],
            "row 4, column 'caption_index': '1', which row 2 has already",
        ),
        ("captions.csv", ["video_name,caption_index,caption", f"{NAMES[0]},1,"], "row 2, column 'caption': ''"),
        ("annotations.csv", ["video_name,rating-valence", "x,0.5"], "row 2, column 'video_name': 'x', expected a name"),
        (
            "annotations.csv",
            ["video_name,rating-valence", f"{NAMES[0]},high"],
            "row 2, column 'rating-valence': 'high', expected a number",
        ),
        (
            "annotations.csv",
            ["video_name,rating-valence", f"{NAMES[0]},1", f"{NAMES[0]},1"],
            "row 3, column 'video_name'",
        ),
    ],
)
def test_broken_files_are_named(write, tmp_path, name, lines, message):
    path = write(name, *lines)
    with pytest.raises(ValueError, match=message) as error:
        read_published(tmp_path)
    assert str(path) in str(error.value)


def test_a_clip_in_two_splits_is_refused(write, tmp_path):
    write("train.csv", "video_name", NAMES[0], NAMES[1])
    write("test.csv", "video_name", NAMES[2], NAMES[1])
    with pytest.raises(ValueError, match=r"test\.csv: row 3, column 'video_name': .*, which is in train\.csv too"):
        read_published(tmp_path)


def test_missing_files_are_named(write, tmp_path):
    write("train_triplets.csv", TRIPLETS).unlink()
    with pytest.raises(FileNotFoundError, match=r"similarity: no judgments; expected any of train_triplets\.csv"):
        read_published(tmp_path)
    write("video_mapping.csv", "index,video_name").unlink()
    with pytest.raises(FileNotFoundError, match=r"video_mapping\.csv: no such file"):
        read_published(tmp_path)


def test_real_data(social_data):
    dataset = read_published(social_data)
    judgments = dataset.judgments
    assert len(dataset.items) == 250
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"train": 200, "test": 50}
    assert sorted(np.concatenate(list(dataset.splits.values()))) == list(range(250))

    assert len(judgments) == 24_096
    assert judgments.cleaning == CleaningReport(24_096, 24_096)
    assert len(judgments.among(dataset.splits["train"])) == 24_096
    assert len(judgments.participant_names) == len(np.unique(judgments.participants)) == 215
    assert len(judgments.repeats) == 18_000
    assert (judgments.repeats.counts.sum(axis=1) > 1).sum() == 4_167

    lengths = [len(dataset.captions[name]) for name in dataset.items]
    assert (min(lengths), max(lengths), sum(lengths)) == (5, 11, 1391)
    assert dataset.ratings.names == (
        "indoor",
        "expanse",
        "object",
        "agent_distance",
        "facingness",
        "joint_action",
        "communication",
        "valence",
        "arousal",
        "intimacy",
        "dominance",
    )
    assert dataset.ratings.values.shape == (250, 11)
    assert dataset.ratings.values.min() == 0
    assert dataset.ratings.values.max() == 1
