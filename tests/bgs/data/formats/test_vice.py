import io
import os
import pickle

import numpy as np
import pytest

from bgs.data.cleaning import MISSING_VALUE, REPEATED_ITEM, CleaningReport
from bgs.data.formats.vice import read_vice, write_vice
from bgs.data.judgments import MOST_ITEMS, Judgments

TRIPLETS = [[0, 3, 1], [4, 2, 0], [1, 3, 0]]


def saved(tmp_path, values, suffix=".npy", dtype=np.int64):
    path = tmp_path / f"train_90{suffix}"
    if suffix == ".npy":
        np.save(path, np.array(values, dtype=dtype))
    else:
        path.write_text("\n".join(" ".join(map(str, row)) for row in values) + "\n")
    return path


def text(tmp_path, content):
    path = tmp_path / "train_90.txt"
    path.write_text(content)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".txt"])
def test_numbers_from_zero(tmp_path, suffix):
    judgments = read_vice(saved(tmp_path, TRIPLETS, suffix))
    assert judgments.triplets.tolist() == TRIPLETS
    assert judgments.items == ("0", "1", "2", "3", "4")
    assert judgments.participants is None
    assert judgments.cleaning == CleaningReport(3, 3)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.uint64, np.float32, np.float64])
def test_any_kind_of_number(tmp_path, dtype):
    judgments = read_vice(saved(tmp_path, TRIPLETS, dtype=dtype))
    assert judgments.triplets.tolist() == TRIPLETS
    assert judgments.triplets.dtype == np.int64


@pytest.mark.parametrize(
    "content",
    [
        "0 3 1\n4 2 0\n1 3 0",
        "0,3,1\n4,2,0\n1,3,0\n",
        "0, 3, 1\r\n4, 2, 0\r\n1, 3, 0\r\n",
        "0\t3\t1\n\n4\t2\t0\n1\t3\t0\n\n",
        "# i j odd\n0 3 1\n4 2 0  # late\n1 3 0\n",
        "\ufeff0 3 1\n4 2 0\n1 3 0\n",
        "0.000e+00 3.000e+00 1.000e+00\n4.0 2.0 0.0\n1 3 0\n",
    ],
)
def test_ways_to_write_text(tmp_path, content):
    path = tmp_path / "train_90.txt"
    path.write_bytes(content.encode("utf-8"))
    assert read_vice(path).triplets.tolist() == TRIPLETS


def test_a_single_line(tmp_path):
    assert read_vice(text(tmp_path, "0 2 1\n")).triplets.tolist() == [[0, 2, 1]]


def test_numbers_from_one(tmp_path):
    path = saved(tmp_path, np.array(TRIPLETS) + 1)
    with pytest.raises(ValueError, match=r"the lowest item number is 1, .* starts at 1 \(one_indexed\)"):
        read_vice(path)
    judgments = read_vice(path, one_indexed=True)
    assert judgments.triplets.tolist() == TRIPLETS
    assert judgments.items == ("1", "2", "3", "4", "5")
    assert read_vice(path, one_indexed=False).items == ("0", "1", "2", "3", "4", "5")


def test_as_many_names_as_the_highest_number_mean_numbers_from_one(tmp_path):
    path = saved(tmp_path, np.array(TRIPLETS) + 1)
    judgments = read_vice(path, names=tuple("abcde"))
    assert judgments.triplets.tolist() == TRIPLETS
    assert judgments.items == tuple("abcde")
    with pytest.raises(ValueError, match="one_indexed"):
        read_vice(path, names=tuple("abcdef"))


@pytest.mark.parametrize("suffix", [".npy", ".txt"])
def test_numbers_that_have_no_name_are_refused(tmp_path, suffix):
    path = saved(tmp_path, TRIPLETS, suffix)
    with pytest.raises(ValueError, match=r"row 2, column 1: 4, expected 0..3, the numbers of 4 items"):
        read_vice(path, names=tuple("abcd"))
    with pytest.raises(ValueError, match=r"row 1, column 1: 0, expected 1..5, the numbers of 5 items"):
        read_vice(path, names=tuple("abcde"), one_indexed=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("item_names.txt", "a\nb\nc\nd\ne\nf\n"),
        ("unique_id.txt", "a\r\nb\r\nc\r\nd\r\ne\r\nf"),
        ("item_names.tsv", "id\tuniqueID\n1\ta\n2\tb\n3\tc\n4\td\n5\te\n6\tf\n"),
    ],
)
def test_names_are_found_beside(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    path = saved(tmp_path, TRIPLETS)
    assert read_vice(path).items == tuple("abcdef")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert read_vice(saved(elsewhere, TRIPLETS), names=tmp_path / name).items == tuple("abcdef")


def test_broken_names_are_refused(tmp_path):
    path = saved(tmp_path, TRIPLETS)
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        read_vice(path, names=tmp_path / "none.txt")
    (tmp_path / "item_names.txt").write_text("a\nb\n\nc\nb\ne\n")
    with pytest.raises(ValueError, match=r"item_names\.txt: row 5: 'b', which row 2 has already"):
        read_vice(path)


def test_malformed_rows_are_dropped_and_counted(tmp_path):
    nan = np.nan
    path = saved(tmp_path, [[0, 1, 2], [1, 1, 2], [0, nan, 2], [0, 2, 2], [nan, nan, nan], [2, 0, 1]], dtype=np.float64)
    judgments = read_vice(path)
    assert judgments.triplets.tolist() == [[0, 1, 2], [2, 0, 1]]
    assert judgments.cleaning == CleaningReport(6, 2, {MISSING_VALUE: 2, REPEATED_ITEM: 2})
    shifted = read_vice(saved(tmp_path, [[1, nan, 3], [3, 1, 2]], dtype=np.float64), one_indexed=True)
    assert shifted.triplets.tolist() == [[2, 0, 1]]
    assert read_vice(text(tmp_path, "0 nan 1\n0 2 1\n")).cleaning.dropped == {MISSING_VALUE: 1}


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([[0, 1, 2], [0, -1, 2]], np.int64, "row 2, column 2: -1, expected an item number"),
        ([[0, 1, 2.5]], np.float64, "row 1, column 3: 2.5, expected an item number"),
        ([[0, 1, np.inf]], np.float64, "row 1, column 3: inf, expected an item number"),
        ([[0, MOST_ITEMS + 1, 2]], np.int64, "row 1, column 2: 2097153, expected an item number"),
        ([[0, 2**64 - 1, 2]], np.uint64, "row 1, column 2: 18446744073709551615, expected an item number"),
        ([[0, 1]], np.int64, r"int64 array of shape \(1, 2\), expected integers \(N, 3\)"),
        ([0, 1, 2], np.int64, r"array of shape \(3,\)"),
        ([["a", "b", "c"]], str, "<U1 array"),
        ([[True, False, True]], bool, "bool array"),
        ([[1j, 2, 3]], complex, "complex128 array"),
    ],
)
def test_broken_arrays_are_named(tmp_path, values, dtype, message):
    path = saved(tmp_path, values, dtype=dtype)
    with pytest.raises(ValueError, match=message) as error:
        read_vice(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 1 2\n\n0 -1 2\n", "row 3, column 2: -1.0, expected an item number"),
        ("0 1 2\n0 x 2\n", "row 2, column 2: 'x', expected an item number"),
        ("# head\n0 1 2\n0 1\n", "row 3 has 2 values, expected 3 item numbers"),
        ("0 1 2 3\n0 1 2 3\n", r"shape \(2, 4\), expected integers \(N, 3\)"),
        ("0,1,2\n0,,2\n", "row 2 has 2 values"),
    ],
)
def test_broken_text_is_named(tmp_path, content, message):
    path = text(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        read_vice(path)
    assert str(path) in str(error.value)


def test_text_that_is_no_text(tmp_path):
    path = tmp_path / "train_90.txt"
    path.write_bytes(b"0 1 2\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"train_90\.txt: not UTF-8 text"):
        read_vice(path)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "object array", "archive", "cut short", "empty"])
def test_files_that_are_no_array_are_refused_and_never_unpickled(tmp_path, how):
    path, sprung = tmp_path / "train_90.npy", tmp_path / "sprung"
    buffer = io.BytesIO()
    if how == "pickle":
        pickle.dump(Trap(sprung), buffer)
    elif how == "object array":
        np.save(buffer, np.array([[Trap(sprung)] * 3]), allow_pickle=True)
    elif how == "archive":
        np.savez(buffer, np.array(TRIPLETS))
    elif how == "cut short":
        np.save(buffer, np.array(TRIPLETS))
        buffer.truncate(150)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"train_90\.npy: (not an array of numbers|an archive of arrays)"):
        read_vice(path)
    assert not sprung.exists()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npy: no such file"):
        read_vice(tmp_path / "none.npy")


@pytest.mark.parametrize("suffix", [".npy", ".txt"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    judgments = Judgments(("x y", "é", "a#b", "never judged"), np.array([[2, 0, 1], [1, 0, 2]]))
    path = tmp_path / f"train_90{suffix}"
    write_vice(judgments, path)
    again = read_vice(path, one_indexed=False)
    assert again.items == judgments.items
    assert (again.triplets == judgments.triplets).all()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["item_names.txt", path.name]


def test_files_about_the_same_items_share_their_names(tmp_path):
    judgments = Judgments(tuple("abc"), np.array([[2, 0, 1]]))
    write_vice(judgments, tmp_path / "train_90.npy")
    write_vice(judgments, tmp_path / "test_10.npy")
    with pytest.raises(ValueError, match=r"item_names\.txt: holds the names of other items"):
        write_vice(Judgments(tuple("xyz"), judgments.triplets), tmp_path / "other.npy")
    assert not (tmp_path / "other.npy").exists()


def test_what_cannot_be_written(tmp_path):
    triplets = np.array([[2, 0, 1]])
    with pytest.raises(ValueError, match=r"suffix '\.csv', expected \.npy or \.txt"):
        write_vice(Judgments(tuple("abc"), triplets), tmp_path / "train.csv")
    with pytest.raises(ValueError, match=r"items: 'a\\nb' cannot be a line of item_names\.txt"):
        write_vice(Judgments(("a\nb", "c", "d"), triplets), tmp_path / "train.npy")
    assert not list(tmp_path.iterdir())
