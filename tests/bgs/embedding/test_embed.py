"""`python -m bgs.embed` from end to end: people's videos, of all sizes and rates, and what is wrong with some."""

import json
import os
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

import bgs
from bgs.embed import main
from bgs.models.embedder import Embedder

VIDEOS = 200
FRAMES = 6
"""Taken from each."""

# The display matrix (a, b, c, d) and the corner in which a picture's upper left one is then shown.
TURNS = {
    "none": ((1, 0, 0, 1), (0, 0)),
    "clockwise": ((0, 1, -1, 0), (0, 1)),
    "half": ((-1, 0, 0, -1), (1, 1)),
    "counter": ((0, -1, 1, 0), (1, 0)),
}
SIZES = [(48, 64), (64, 48), (72, 96), (64, 64), (96, 54), (47, 63), (49, 64), (65, 37)]
RATES = [10, 24, 25, Fraction(30000, 1001), 30, 50]
FIRST, STEP, MARK = 10, 12, 250


@pytest.fixture
def library(tmp_path, write_clip, set_matrix):
    """A folder of videos; for each the frames that are to be taken from it and the corner of its mark.

    A frame's number is its grey level; the mark, in its upper left quarter, is lighter than any of them.
    """
    folder = tmp_path / "videos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    expected = {}
    for k in range(VIDEOS):
        number = int(rng.integers(8, 17))
        height, width = SIZES[k % len(SIZES)]
        frames = np.empty((number, height, width, 3), np.uint8)
        frames[:] = FIRST + STEP * np.arange(number)[:, None, None, None]
        frames[:, : height // 2, : width // 2] = MARK
        rate, times = Fraction(RATES[k % len(RATES)]), None
        starts = [place / rate for place in range(number + 1)]
        if k % 3 == 0:  # the last frame stays for 40 ms: the encoder goes by the nominal rate
            rate, gaps = Fraction(25), rng.integers(15, 140, number - 1)
            starts = [Fraction(int(at), 1000) for at in np.cumsum([0, *gaps, 40])]
            times = [float(at) for at in starts[:-1]]
        path = folder / f"{k:03d}.mp4"
        write_clip(
            path,
            frames,
            fps=rate,
            times=times,
            pixel_format="yuv444p" if height % 2 or width % 2 else "yuv420p",
            options={
                "preset": "ultrafast",
                "bf": "0" if times else str(k % 4),
                "g": str(rng.choice([4, 250])),
                "crf": "10",
            },
        )
        turn = list(TURNS)[k // 2 % len(TURNS)]
        set_matrix(path, *TURNS[turn][0])
        moments = [starts[-1] * Fraction(2 * j + 1, 2 * FRAMES) for j in range(FRAMES)]
        taken = [max(place for place in range(number) if starts[place] <= moment) for moment in moments]
        expected[str(path)] = (taken, TURNS[turn][1])
    return folder, expected


@pytest.fixture
def seen(monkeypatch):
    """Clips that reach the model, in order."""
    clips = []
    forward = Embedder.forward

    def watched(self, batch):
        clips.extend(batch)
        return forward(self, batch)

    monkeypatch.setattr(Embedder, "forward", watched)
    return clips


def read_back(clip):
    """The number of each frame and the corner of the mark, from pixels (T, 3, H, W)."""
    grey = clip.float().mean(1)
    height, width = (side // 2 for side in grey.shape[1:])
    quarters = grey.unfold(1, height, height).unfold(2, width, width).flatten(3).median(-1).values  # (T, 2, 2)
    light = quarters.flatten(1).argmax(1)
    assert len(light.unique()) == 1 and (quarters.amax((1, 2)) > MARK - 8).all()
    levels = quarters.flatten(1).median(1).values
    return ((levels - FIRST) / STEP).round().int().tolist(), tuple(divmod(int(light[0]), 2))


def test_two_hundred_videos_of_every_kind(library, model_folder, seen, tmp_path, capsys):
    folder, expected = library
    whole = (folder / "000.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "notes.mp4").write_text("not a video")
    output = tmp_path / "out.npz"
    words = [str(folder), "--model", str(model_folder), "--frames", str(FRAMES), "--output", str(output)]
    assert main(words) == 1
    errors = capsys.readouterr().err
    assert "3 of 203 clips cannot be used" in errors
    for name, reason in (("cut", "truncated|corrupt"), ("empty", "empty file"), ("notes", "not a video file")):
        assert len(re.findall(rf"^  {folder}/{name}\.mp4: .*(?:{reason})", errors, re.MULTILINE)) == 1

    model, _ = bgs.load(model_folder, frames=FRAMES)
    with np.load(output) as found:
        assert found["files"].tolist() == sorted(expected)
        embeddings = torch.from_numpy(found["embeddings"])
    assert len(seen) == VIDEOS
    wrong = [path for path, clip in zip(sorted(expected), seen, strict=True) if read_back(clip) != expected[path]]
    assert wrong == []
    assert {corner for _, corner in expected.values()} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    torch.testing.assert_close(model(torch.stack(seen[:20])), embeddings[:20])


@pytest.fixture
def refused(model_folder, capsys, monkeypatch):
    """Runs a command line that is refused before a model is loaded, and gives what it says."""

    def run(*words):
        def loaded(*arguments, **settings):
            raise AssertionError("the model was loaded")

        monkeypatch.setattr("bgs.models.loading.load_embedder", loaded)
        assert main([*map(str, words), "--model", str(model_folder)]) == 2
        return capsys.readouterr().err

    return run


def test_what_is_wrong_with_the_words_is_said_first(refused, videos, tmp_path):
    assert "out.csv has suffix '.csv'" in refused(*videos, "--output", tmp_path / "out.csv")
    assert "no folder" in refused(*videos, "--output", tmp_path / "gone/out.npz")
    (tmp_path / "out.npz").touch()
    assert "--overwrite replaces it" in refused(*videos, "--output", tmp_path / "out.npz")
    new = ("--output", tmp_path / "new.npz")
    assert "*.avi: no video file there" in refused(f"{tmp_path}/*.avi", *new)
    assert "a second time" in refused(videos[0], tmp_path / "videos", *new)
    assert "1 of 8 files are not there" in refused(*videos, tmp_path / "lost.mp4", *new)


def test_an_output_is_replaced_when_asked(videos, model_folder, tmp_path):
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"before")
    assert main([*videos, "--model", str(model_folder), "--output", str(output), "--overwrite"]) == 0
    assert output.stat().st_size > 7 * 24 * 4


def test_fused_kernels_are_chosen_and_recorded(videos, model_folder, tmp_path):
    found = {}
    for name, words in (("plain", ["--no-accelerate"]), ("fused", ["--accelerate"])):
        output = tmp_path / f"{name}.npz"
        assert main([*videos, "--model", str(model_folder), "--output", str(output), *words]) == 0
        with np.load(output) as content:
            assert json.loads(str(content["about"]))["accelerated"] is (name == "fused")
            found[name] = content["embeddings"]
    np.testing.assert_allclose(found["fused"], found["plain"], atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "{empty}"], "no model there; expected a run"),
        (["--device", "quantum"], "device: 'quantum' cannot be used"),
        (["--layers", "0,9"], "layers: 9; expected"),
        (["--tokens", "0"], "tokens: 0; expected at least 1"),
        (["--workers", "0"], "workers: expected a positive integer"),
        (["--frames", "5"], "tubelet"),
    ],
)
def test_settings_that_cannot_be(words, message, videos, model_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = [word.format(empty=tmp_path / "empty") for word in words]
    assert main([*videos, "--output", str(tmp_path / "o.npz"), "--model", str(model_folder), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("o.npz*"))


def test_an_interrupted_run_says_how_to_go_on(videos, model_folder, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("bgs.embedding.run.write_table", interrupt)
    words = [*videos, "--output", str(tmp_path / "o.npz"), "--model", str(model_folder)]
    assert main(words) == 130
    assert "goes on from the batches that are finished" in capsys.readouterr().err
    assert list(tmp_path.glob("o.npz.partial/*.safetensors"))


def test_as_a_program(videos, model_folder, tmp_path):
    with open(videos[3], "wb"):
        pass
    (tmp_path / "list.txt").write_text("\n".join(videos))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = ["@list.txt", "--model", model_folder, "--output", "out.safetensors", "--layers", "all"]
    command = [sys.executable, "-m", "bgs.embed", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f"1 of 7 clips cannot be used:\n  {videos[3]}: empty file" in done.stderr
    assert "out.safetensors: 6 of 7 files embedded" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt", "out.safetensors", "videos"]
