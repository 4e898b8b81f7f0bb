import logging

import numpy as np
import pytest

from bgs.data import load_dataset


@pytest.fixture
def folder(tmp_path):
    for name, lines in {
        "raw/utils/video_mapping.csv": ["index,video_name", "0,a", "1,b", "2,c"],
        "interim/similarity/train_triplets.csv": ["stim1,stim2,stim3,choice", "0,1,2,0"],
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(lines))
    return tmp_path


def file(tmp_path, name, *lines):
    path = tmp_path / name
    path.write_text("\n".join(lines))
    return path


def test_every_format_ends_in_the_same_judgments(folder, tmp_path):
    np.save(tmp_path / "train_90.npy", [[1, 2, 0]])
    paths = [
        folder,
        file(tmp_path, "judgments.csv", "s1,s2,s3,choice", "a,b,c,a"),
        file(tmp_path, "judgments.tsv", "s1\ts2\ts3\tchoice", "a\tb\tc\ta"),
        tmp_path / "train_90.npy",
        file(tmp_path, "train_90.txt", "1 2 0"),
    ]
    for path in paths:
        dataset = load_dataset(str(path))
        assert dataset.judgments.triplets.tolist() == [[1, 2, 0]]
        assert dataset.items == (("a", "b", "c") if path.suffix not in (".npy", ".txt") else ("0", "1", "2"))
        assert dataset.folder == tmp_path


def test_arguments_reach_the_reader(folder, tmp_path):
    table = file(tmp_path, "table.csv", "left,mid,right,picked,who", "a,b,c,1,p")
    dataset = load_dataset(
        table,
        items=("left", "mid", "right"),
        choice="picked",
        participant="who",
        choice_is="position",
        one_indexed=True,
    )
    assert dataset.judgments.triplets.tolist() == [[1, 2, 0]]
    assert dataset.judgments.participant_names == ("p",)
    numbers = file(tmp_path, "train_90.txt", "1 2 3")
    names = file(tmp_path, "names.txt", "x", "y", "z", "w")
    assert load_dataset(numbers, names=str(names), one_indexed=True).items == ("x", "y", "z", "w")
    assert load_dataset(folder, choice="choice").items == ("a", "b", "c")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("", {"one_indexed": True}),
        ("", {"choice_is": "item"}),
        ("", {"names": ["a"]}),
        ("judgments.csv", {"names": ["a"]}),
        ("train_90.txt", {"choice": "odd"}),
        ("train_90.txt", {"items": ("a", "b", "c")}),
    ],
)
def test_arguments_that_do_not_apply_are_refused(folder, tmp_path, name, arguments):
    file(tmp_path, "judgments.csv", "s1,s2,s3,choice", "a,b,c,a")
    file(tmp_path, "train_90.txt", "1 2 0")
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}: .* does not apply to"):
        load_dataset(tmp_path / name, **arguments)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
        load_dataset(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"a folder without raw/utils/video_mapping\.csv"):
        load_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"suffix '\.pkl', expected a folder or \.csv"):
        load_dataset(file(tmp_path, "judgments.pkl", "x"))


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("judgments.csv", ["s1,s2,s3,choice"], "no usable judgment .*0 rows read"),
        ("judgments.csv", ["s1,s2,s3,choice", "a,a,b,a"], "no usable judgment .*repeated item 1"),
        ("train_90.txt", [""], "no usable judgment"),
        ("train_90.txt", ["nan nan nan"], "no usable judgment .*missing value 1"),
    ],
)
def test_a_source_without_a_judgment_is_refused(tmp_path, name, lines, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(file(tmp_path, name, *lines))


def test_dropped_rows_are_logged_as_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        load_dataset(file(tmp_path, "whole.csv", "s1,s2,s3,choice", "a,b,c,a"))
        load_dataset(file(tmp_path, "torn.csv", "s1,s2,s3,choice", "a,b,c,a", "a,a,c,a"))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert caplog.messages[1].endswith("torn.csv: 2 rows read, 1 kept; dropped: repeated item 1")
