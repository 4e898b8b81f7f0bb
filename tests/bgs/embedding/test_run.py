"""A run over files: what is embedded, what is kept when it is killed, and that going on gives the same bytes."""

import importlib.metadata
import json
import logging
import os

import numpy as np
import pytest
import torch

import bgs
from bgs.embedding import run as module
from bgs.embedding.run import embed_files
from bgs.embedding.shards import Shard, Shards
from bgs.embedding.tables import WRITERS
from bgs.models import Embedder, HeadConfig, load_backbone

SUFFIXES = list(WRITERS)
TOKENS = 16  # two clips of the model that the tests have


@pytest.fixture
def embedder(model_folder):
    return bgs.load(model_folder)[0]


@pytest.fixture
def embed(embedder, videos, tmp_path):
    """Embeds the clips, two in a batch, into a file of this name."""

    def go(name="t.npz", files=None, **settings):
        settings = {"name": "model", "tokens": TOKENS, "progress": False} | settings
        return embed_files(embedder, videos if files is None else files, tmp_path / name, **settings)

    return go


@pytest.fixture
def batches(embedder, monkeypatch):
    """Number of clips in each batch that reaches the model, in order."""
    seen = []

    def counted(batch, forward=embedder.forward):
        seen.append(len(batch))
        return forward(batch)

    monkeypatch.setattr(embedder, "forward", counted)
    return seen


@pytest.fixture
def killed_after(monkeypatch):
    """Ends runs after a number of batches, as a signal would; None for never."""
    left = [None]

    def write(self, files, shard, write=Shards.write):
        if left[0] == 0:
            raise KeyboardInterrupt
        if left[0] is not None:
            left[0] -= 1
        write(self, files, shard)

    monkeypatch.setattr(Shards, "write", write)
    return lambda number: left.__setitem__(0, number)


@pytest.fixture
def killed(embed, killed_after, batches):
    """Makes a run that is killed after a number of batches; those of later runs alone are seen."""

    def run(number, name="t.npz"):
        killed_after(number)
        with pytest.raises(KeyboardInterrupt):
            embed(name)
        killed_after(None)
        batches.clear()

    return run


def test_embeddings_are_those_of_the_model(embed, embedder, videos, tmp_path, batches):
    outcome = embed()
    assert (outcome.embedded, outcome.errors) == (7, ()) and batches == [2, 2, 2, 1]
    with np.load(tmp_path / "t.npz") as found:
        assert found["files"].tolist() == videos
        torch.testing.assert_close(torch.from_numpy(found["embeddings"]), embedder.embed(videos))
        about = json.loads(str(found["about"]))
    assert about["digest"] == embedder.digest() and about["preprocess"] == embedder.preprocess.to_dict()
    assert about["versions"]["torch"] == importlib.metadata.version("torch") and about["clips_per_batch"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.npz", "videos"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(embed, tmp_path, killed, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    embed(f"whole{suffix}")
    killed(2, f"cut{suffix}")
    assert not (tmp_path / f"cut{suffix}").exists()
    assert len(list((tmp_path / f"cut{suffix}.partial").iterdir())) == 2
    embed(f"cut{suffix}")
    assert (tmp_path / f"cut{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not (tmp_path / f"cut{suffix}.partial").exists()


def test_only_what_is_left_is_decoded_and_embedded(embed, batches, killed, monkeypatch, caplog):
    killed(2)
    decoded = []
    getitem = module.ClipSet.__getitem__
    monkeypatch.setattr(module.ClipSet, "__getitem__", lambda self, row: decoded.append(row) or getitem(self, row))
    with caplog.at_level(logging.INFO, "bgs"):
        embed()
    assert batches == [2, 1] and sorted(decoded) == [4, 5, 6]
    assert "t.npz.partial: 4 of 7 files are finished already" in caplog.text


@pytest.mark.parametrize("change", ["nothing", "a file", "the batches", "the model", "the layers"])
def test_what_is_finished_counts_only_for_what_it_was(change, embed, embedder, videos, batches, killed, monkeypatch):
    killed(3)
    if change == "nothing":
        embed()
        assert batches == [1]
    elif change == "a file":
        os.utime(videos[2], (1, 1))
        embed()
        assert batches == [2, 1]
    elif change == "the batches":
        embed(tokens=3 * TOKENS // 2)
        assert batches == [3, 3, 1]
    elif change == "the model":
        with torch.no_grad():
            next(embedder.parameters()).add_(1.0)
        embed()
        assert batches == [2, 2, 2, 1]
    else:
        inner = embedder.embed_layers
        monkeypatch.setattr(
            embedder, "embed_layers", lambda batch, layers: batches.append(len(batch)) or inner(batch, layers)
        )
        embed(layers="1")
        assert batches == [2, 2, 2, 1]


def test_a_damaged_batch_is_made_again(embed, tmp_path, batches, killed):
    killed(2)
    first, _ = sorted((tmp_path / "t.npz.partial").iterdir())
    first.write_bytes(first.read_bytes()[:50])
    embed()
    assert batches == [2, 2, 1]


def test_files_of_others_in_the_folder_of_batches_stay(embed, tmp_path):
    (tmp_path / "t.npz.partial").mkdir()
    (tmp_path / "t.npz.partial/notes.txt").touch()
    embed()
    assert [path.name for path in (tmp_path / "t.npz.partial").iterdir()] == ["notes.txt"]


def test_files_that_cannot_be_used_are_named_and_the_rest_is_kept(embed, videos, tmp_path, batches, killed):
    for broken, content in ((1, b""), (4, b"not a video"), (5, b"")):
        with open(videos[broken], "wb") as file:
            file.write(content)
    outcome = embed("whole.npz")
    assert [str(error.path) for error in outcome.errors] == [videos[1], videos[4], videos[5]]
    assert "empty file" in outcome.errors[0].reason and "not a video" in outcome.errors[1].reason
    assert batches == [1, 2, 1]  # of the third batch nothing is left
    with np.load(tmp_path / "whole.npz") as found:
        assert found["files"].tolist() == [videos[k] for k in (0, 2, 3, 6)] and len(found["embeddings"]) == 4
    killed(3, "cut.npz")
    again = embed("cut.npz")  # what was wrong is remembered with the batches
    assert [str(error) for error in again.errors] == [str(error) for error in outcome.errors]
    assert (tmp_path / "cut.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_with_nothing_that_can_be_used_there_is_no_table(embed, videos, tmp_path, caplog):
    for path in videos:
        with open(path, "wb"):
            pass
    with caplog.at_level(logging.INFO, "bgs"):
        outcome = embed()
    assert (outcome.embedded, len(outcome.errors)) == (0, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]
    assert "not written: no file could be used" in caplog.text


def test_layers(embed, embedder, videos, tmp_path):
    expected = embedder.embed_layers(torch.stack([embedder.preprocess(path) for path in videos]), [0, 2])
    embed(layers="0,2")
    with np.load(tmp_path / "t.npz") as found:
        assert found["layers"].tolist() == [0, 2] and found["embeddings"].shape == (7, 2, 24)
        torch.testing.assert_close(torch.from_numpy(found["embeddings"]).transpose(0, 1), expected)
    embed("all.npz", layers="all")
    with np.load(tmp_path / "all.npz") as found:
        assert found["layers"].tolist() == [0, 1, 2] and found["embeddings"].shape == (7, 3, 24)


@pytest.mark.parametrize(
    ("layers", "message"), [("0,3", "layers: 3; expected"), ("0,x", "'0,x'; expected 'all'"), ("1,-2", "layer twice")]
)
def test_layers_that_are_not_there(embed, layers, message):
    with pytest.raises(ValueError, match=message):
        embed(layers=layers)


def test_half_precision_is_autocast(embed, tmp_path, monkeypatch, embedder):
    seen = []
    inner = embedder.forward
    monkeypatch.setattr(embedder, "forward", lambda batch: seen.append(torch.get_autocast_dtype("cpu")) or inner(batch))
    embed("a.npz")
    embed("b.npz", precision="bf16")
    assert seen[-1] == torch.bfloat16
    with np.load(tmp_path / "a.npz") as full, np.load(tmp_path / "b.npz") as half:
        assert json.loads(str(full["about"]))["precision"] == "fp32"
        assert json.loads(str(half["about"]))["precision"] == "bf16"
        assert full["embeddings"].dtype == half["embeddings"].dtype == np.float32
        np.testing.assert_allclose(full["embeddings"], half["embeddings"], atol=0.05)


def test_embeddings_that_are_not_finite_are_an_error(embed, embedder, videos, monkeypatch):
    broken = torch.zeros(2, 24).index_fill_(0, torch.tensor([1]), torch.nan)
    monkeypatch.setattr(embedder, "forward", lambda batch: broken)
    with pytest.raises(ValueError, match=r"clip_1\.mp4: its embedding is not finite in precision fp32"):
        embed()


def test_a_model_of_captions_is_refused(videos, tmp_path):
    pytest.importorskip("sentence_transformers", reason="backbone 'text' needs sentence-transformers")
    embedder = Embedder(load_backbone("text", "tiny", hidden_size=24, num_hidden_layers=1), HeadConfig("none"))
    with pytest.raises(ValueError, match="mine: embeds captions, not videos"):
        embed_files(embedder, videos, tmp_path / "t.npz", name="mine")


def test_devices_that_are_not_there():
    assert module.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device: 'quantum' cannot be used"):
        module.choose_device("quantum")


def test_shards_know_their_files(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"1")
    kept = Shard(np.arange(3, dtype=np.float32)[None], {1: "empty"})
    shards = Shards(tmp_path / "t.npz", {"model": 1})
    files = [str(path), str(tmp_path / "gone.mp4")]
    assert shards.read(files) is None
    shards.write(files, kept)
    found = shards.read(files)
    assert np.array_equal(found.embeddings, kept.embeddings) and found.errors == {1: "empty"}
    assert shards.read(files[::-1]) is None and Shards(tmp_path / "t.npz", {"model": 2}).read(files) is None
    path.write_bytes(b"12")
    assert shards.read(files) is None
