import numpy as np
import pytest

from bgs.data.cleaning import MISSING
from bgs.data.formats.tables import as_integer, is_empty, read_header, read_table


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_columns_are_read_by_name(tmp_path, delimiter, end, encoding):
    rows = [["a", "b ", "c"], ["1", " é ", '"x, y; z\tw"'], ["2", "", '"two\nlines"'], ["3"]]
    table = read_table(written(tmp_path, end.join(map(delimiter.join, rows)), encoding), ("c", "a", "b"))
    assert table.columns == {"c": ["x, y; z\tw", "two\nlines", ""], "a": ["1", "2", "3"], "b": ["é", "", ""]}
    assert list(table.lines) == [2, 3, 5]
    assert len(table) == 3


def test_lines_are_those_an_editor_shows(tmp_path):
    table = read_table(written(tmp_path, 'a,b\n1,x\n\n2,"y\ny"\n\n3,z\n'), ("a",))
    assert list(table.lines) == [2, 4, 7]


def test_header(tmp_path):
    assert read_header(written(tmp_path, "a, b ,c\n1,2,3\n")) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "row 1 is empty, expected a header"),
        ("\n1,2\n", "row 1 is empty, expected a header"),
        ("a,b\n1,2\n", "no column 'c'; its columns are 'a', 'b'"),
        ("a,c,c\n1,2,3\n", "more than one column 'c'"),
        ("a,c\n1,2\n\n1,2,3\n", "row 4 has 3 cells, the header has 2"),
        ('a,c\n1,"2\n', "row 2 is broken"),
    ],
)
def test_broken_files_are_named(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        read_table(path, ("c",))
    assert str(path) in str(error.value)


def test_other_encodings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="table.csv: not UTF-8 text"):
        read_table(written(tmp_path, "a,b\n1,é\n", "latin-1"), ("a",))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv: no such file"):
        read_header(tmp_path / "none.csv")


def test_encode(tmp_path):
    table = read_table(written(tmp_path, "a,b\n7,x\nNA,x\n7.0,x\n12,x\n,x\n"), ("a",))
    codes = table.encode("a", as_integer)
    assert codes.tolist() == [7, MISSING, 7, 12, MISSING]
    assert codes.dtype == np.int64


def test_encode_names_the_first_cell_that_is_wrong(tmp_path):
    table = read_table(written(tmp_path, "a\n7\n\nseven\neight\n"), ("a",))
    with pytest.raises(ValueError, match=r"table.csv: row 4, column 'a': 'seven', expected an integer"):
        table.encode("a", as_integer)


def test_a_required_cell_cannot_be_empty(tmp_path):
    table = read_table(written(tmp_path, "a,b\n7,x\nNaN,x\n"), ("a",))
    with pytest.raises(ValueError, match="row 3, column 'a': 'NaN', expected an integer"):
        table.encode("a", as_integer, required=True)


def test_check_distinct(tmp_path):
    table = read_table(written(tmp_path, "a\nx\ny\nx\n"), ("a",))
    table.check_distinct("a", [1, 2, 3])
    with pytest.raises(ValueError, match="row 4, column 'a': 'x', which row 2 has already"):
        table.check_distinct("a", table.columns["a"])


@pytest.mark.parametrize(("cell", "number"), [("0", 0), ("12", 12), ("-3", -3), ("30.0", 30), ("30.", 30), ("007", 7)])
def test_integers(cell, number):
    assert as_integer(cell) == number


@pytest.mark.parametrize("cell", ["", "1.5", "1e3", "x", "1 2", "1_000", "٣", "nan", "inf"])
def test_what_is_no_integer(cell):
    with pytest.raises(ValueError, match="expected an integer"):
        as_integer(cell)


def test_empty_cells():
    assert all(map(is_empty, ["", "NA", "nan", "NaN", "None", "null", "N/A"]))
    assert not any(map(is_empty, ["0", "no", "-", "naan"]))
