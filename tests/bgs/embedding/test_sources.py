"""What is named on a command line: files, folders, patterns and lists become files, each once, in a fixed order."""

import os
from pathlib import Path

import pytest

from bgs.embedding.sources import find_videos

NAMES = ["b.mp4", "a.webm", "deep/er/c.MOV", "deep/d.mkv", "notes.txt", "clip[1].mp4"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name in NAMES:
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_stay_as_they_were_given(here):
    assert find_videos(["v/b.mp4", "./v/a.webm", str(here / "v/deep/d.mkv")]) == [
        "v/b.mp4",
        "./v/a.webm",
        str(here / "v/deep/d.mkv"),
    ]


def test_a_folder_gives_the_videos_in_it_and_below(here):
    assert find_videos(["v"]) == ["v/a.webm", "v/b.mp4", "v/clip[1].mp4", "v/deep/d.mkv", "v/deep/er/c.MOV"]


def test_patterns(here):
    assert find_videos(["v/*.mp4"]) == ["v/b.mp4", "v/clip[1].mp4"]
    assert find_videos(["v/**/*.m[ok][vV]", "v/deep/**/*.MOV"]) == ["v/deep/d.mkv", "v/deep/er/c.MOV"]
    # Whatever a pattern is about is asked for, video suffix or not.
    assert find_videos(["v/n*"]) == ["v/notes.txt"]


def test_a_file_whose_name_looks_like_a_pattern(here):
    assert find_videos(["v/clip[1].mp4"]) == ["v/clip[1].mp4"]


def test_the_order_is_that_of_the_inputs(here):
    assert find_videos(["v/deep", "v/b.mp4", "v/a*"]) == ["v/deep/d.mkv", "v/deep/er/c.MOV", "v/b.mp4", "v/a.webm"]


def test_a_list(here):
    Path("list.txt").write_text("v/clip[1].mp4\n\n  v/a.webm\r\n", encoding="utf-8-sig")
    assert find_videos(["@list.txt", "v/b.mp4"]) == ["v/clip[1].mp4", "v/a.webm", "v/b.mp4"]


def test_a_list_that_is_none(here):
    with pytest.raises(FileNotFoundError, match="@gone.txt: no such list of files"):
        find_videos(["@gone.txt"])
    Path("list.txt").write_bytes(b"caf\xe9.mp4")
    with pytest.raises(ValueError, match="@list.txt: not a text file in UTF-8"):
        find_videos(["@list.txt"])
    Path("list.txt").write_text("\n")
    with pytest.raises(ValueError, match="@list.txt: no video file there"):
        find_videos(["@list.txt"])


@pytest.mark.parametrize("given", ["v/*.avi", "empty"])
def test_what_fits_nothing_is_an_error(here, given):
    Path("empty").mkdir()
    with pytest.raises(ValueError, match="no video file there"):
        find_videos(["v/b.mp4", given])


def test_all_files_that_are_not_there_are_named(here):
    Path("list.txt").write_text("v/b.mp4\nv/gone.mp4\n")
    with pytest.raises(FileNotFoundError, match="2 of 3 files are not there: v/gone.mp4, lost.mp4"):
        find_videos(["@list.txt", "lost.mp4"])


def test_a_file_named_twice_is_an_error(here):
    with pytest.raises(ValueError, match=r"v/\*\.mp4: names v/b\.mp4 a second time$"):
        find_videos(["v/b.mp4", "v/*.mp4"])
    with pytest.raises(ValueError, match=r"\./v/b\.mp4 a second time \(as v/b\.mp4\)"):
        find_videos(["v/b.mp4", "./v/b.mp4"])


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_a_name_that_no_table_could_hold_is_an_error(here):
    try:
        Path(os.fsdecode(b"v/caf\xe9.mp4")).touch()
    except OSError:
        pytest.skip("the file system refuses such names")
    with pytest.raises(ValueError, match="is not UTF-8"):
        find_videos(["v"])
