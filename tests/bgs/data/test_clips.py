"""Sets of clips: found by name, checked all at once, decoded once, the same from any number of threads."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from bgs.data import clips as module
from bgs.data.clips import BrokenClipsError, ClipSet, check_clips, find_clips
from bgs.data.decode import decode
from bgs.data.preprocess import Preprocess
from bgs.data.video_file import ClipError

SETTINGS = Preprocess.default_for("timesformer", frames=4, size=32)


@pytest.fixture
def paths(tmp_path, write_clip):
    """Six clips that differ in their pictures."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "clips"
    folder.mkdir()
    pictures = rng.integers(0, 256, (6, 8, 6, 8, 3), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    return [write_clip(folder / f"clip_{k}.mp4", pictures[k]) for k in range(6)]


@pytest.fixture
def decoded(monkeypatch):
    """Which files are decoded, in the order in which that happens."""
    seen = []

    def counted(path, *arguments):
        seen.append(path)
        return decode(path, *arguments)

    monkeypatch.setattr(module, "decode", counted)
    return seen


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


def test_find_clips_with_and_without_suffix(tmp_path):
    touch(tmp_path, "walk.mp4", "talk.webm", "run.MOV", "v1.2.mp4", "walk.json", "talk.txt")
    found = find_clips(tmp_path, ["talk", "walk.mp4", "run", "v1.2", "walk", "talk.mp4"])
    assert [path.name for path in found] == ["talk.webm", "walk.mp4", "run.MOV", "v1.2.mp4", "walk.mp4", "talk.webm"]


def test_find_clips_lists_what_is_missing(tmp_path):
    touch(tmp_path, "walk.mp4", "notes.txt")
    with pytest.raises(FileNotFoundError, match=r"2 of 3 clips are missing: talk, notes \(1 video files are there\)"):
        find_clips(tmp_path, ["walk", "talk", "notes"])
    with pytest.raises(FileNotFoundError, match=r"12 of 12 clips are missing: c0, .*, c9, \.\.\. \(1"):
        find_clips(tmp_path, [f"c{k}" for k in range(12)])
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of clips"):
        find_clips(tmp_path / "nowhere", ["walk"])


def test_find_clips_refuses_to_guess(tmp_path):
    touch(tmp_path, "walk.mp4", "walk.webm")
    assert find_clips(tmp_path, ["walk.webm"]) == [tmp_path / "walk.webm"]
    with pytest.raises(ValueError, match="several files fit clip 'walk': walk.mp4, walk.webm"):
        find_clips(tmp_path, ["walk"])


@pytest.mark.parametrize("cached", [True, False])
def test_rows_and_batches(tmp_path, paths, cached):
    clips = ClipSet(paths, SETTINGS, tmp_path / "cache" if cached else None)
    expected = torch.stack([decode(path, SETTINGS) for path in paths])
    assert len(clips) == 6 and len(expected.flatten(1).unique(dim=0)) == 6
    for _ in range(2):
        assert torch.equal(clips[4], expected[4])
        for rows in ([3, 0, 3], np.array([5, 1]), torch.tensor([2]), []):
            batch = clips.batch(rows)
            assert batch.dtype == torch.uint8 and batch.shape == (len(rows), 4, 3, 32, 32)
            assert torch.equal(batch, expected[torch.as_tensor(rows, dtype=torch.long)])


def test_what_comes_out_can_be_written_to_without_touching_the_cache(tmp_path, paths):
    clips = ClipSet(paths, SETTINGS, tmp_path / "cache")
    first = clips[0].clone()
    clips[0].zero_()
    clips.batch([0, 1]).zero_()
    assert torch.equal(clips[0], first)


def test_each_file_is_decoded_once(tmp_path, paths, decoded):
    clips = ClipSet([*paths, paths[0]], SETTINGS, tmp_path / "cache")
    clips.prepare(progress=False)
    assert sorted(decoded) == sorted(paths)
    clips.prepare(progress=False)
    clips.batch(range(7))
    ClipSet(paths, SETTINGS, tmp_path / "cache")[2]
    assert len(decoded) == 6
    ClipSet(paths, Preprocess.default_for("timesformer", frames=3, size=32), tmp_path / "cache")[2]
    assert len(decoded) == 7


def test_a_damaged_cache_entry_is_decoded_again(tmp_path, paths, decoded):
    clips = ClipSet(paths[:1], SETTINGS, tmp_path / "cache")
    first = clips[0]
    (entry,) = (tmp_path / "cache").rglob("*.npy")
    entry.write_bytes(entry.read_bytes()[:-100])
    assert torch.equal(clips[0], first) and len(decoded) == 2
    assert torch.equal(clips[0], first) and len(decoded) == 2


def test_prepare_names_every_broken_file_and_keeps_the_rest(tmp_path, paths, decoded):
    paths[1].write_bytes(b"")
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    paths[5].unlink()
    clips = ClipSet(paths, SETTINGS, tmp_path / "cache", workers=2)
    with pytest.raises(BrokenClipsError, match="^3 of 6 clips cannot be used:\n") as caught:
        clips.prepare(progress=False)
    assert [error.path for error in caught.value.errors] == [paths[1], paths[3], paths[5]]
    message = str(caught.value)
    assert "clip_1.mp4: empty file" in message and "clip_5.mp4: no such file" in message
    decoded.clear()
    clips.batch([0, 2, 4])
    assert decoded == []
    with pytest.raises(ClipError, match="clip_1.mp4: empty file"):
        clips.batch([0, 1])
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_check_clips(paths):
    check_clips(paths, SETTINGS)
    paths[2].write_bytes(b"not a video")
    with pytest.raises(BrokenClipsError, match="1 of 6 clips cannot be used:\n.*clip_2.mp4: corrupt or not a video"):
        check_clips(paths, SETTINGS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_goes_on_past_broken_files(tmp_path, paths, workers, decoded):
    expected = torch.stack([decode(path, SETTINGS) for path in paths])
    paths[3].write_bytes(b"")
    stream = ClipSet(paths, SETTINGS, None, workers=workers).stream([5, 3, 0, 5], depth=2)
    first = next(stream)
    assert torch.equal(first, expected[5])
    broken, *rest = stream
    assert isinstance(broken, ClipError) and broken.path == paths[3] and broken.reason.startswith("empty file")
    assert torch.equal(torch.stack(rest), expected[[0, 5]])
    assert len(decoded) == 4
    decoded.clear()
    assert torch.equal(next(ClipSet(paths, SETTINGS, None).stream([1, 2, 4, 0, 5], depth=1)), expected[1])
    assert len(decoded) <= 2


def test_many_threads_with_an_empty_cache(tmp_path, paths):
    expected = torch.stack([decode(path, SETTINGS) for path in paths])
    sets = [ClipSet(paths, SETTINGS, tmp_path / "cache", workers=2) for _ in range(2)]
    orders = [np.random.default_rng(seed).permutation(6) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda k: sets[k % 2].batch(orders[k]), range(8)))
    for order, batch in zip(orders, batches, strict=True):
        assert torch.equal(batch, expected[torch.from_numpy(order)])
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 6 and not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_pickled_set_gives_the_same_clips(tmp_path, paths):
    clips = ClipSet(paths, SETTINGS, tmp_path / "cache")
    assert torch.equal(pickle.loads(pickle.dumps(clips)).batch([5, 0]), clips.batch([5, 0]))


def test_workers_must_be_positive(paths):
    with pytest.raises(ValueError, match="workers: expected a positive integer or None, got 0"):
        ClipSet(paths, SETTINGS, None, workers=0)
