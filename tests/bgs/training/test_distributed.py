"""Several processes give what one gives: losses, weights, metrics, tables; they end together, whatever ends one of
them. One start of the processes runs everything that the tests look at.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import bgs
from bgs import processes as processes_module
from bgs.cli import parse_training
from bgs.config import TrainConfig
from bgs.data.synthetic import make_dataset
from bgs.embedding.run import choose_device, embed_files
from bgs.models import Embedder, load_backbone
from bgs.processes import Processes, join
from bgs.training import run as run_module
from bgs.training.run import Run

# under the importlib mode of pytest this folder is in no one's path; new processes inherit it from here
sys.path.insert(0, str(Path(__file__).parent))
from distributed_worker import CLIPS, RUNS, Tiny, embedder_after, fail, runs, words, work

sys.path.pop(0)

HANG = 240
"""Seconds after which processes that have not ended never will."""


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BGS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    return make_dataset(
        folder,
        40,
        0,
        "shapes",
        size=64,
        judgments=3000,
        test_judgments=400,
        mixed_judgments=0,
        workers=1,
        progress=False,
    )


def start(target, world: int, data: Path, folder: Path) -> list[int]:
    """Run a function in new processes that meet as those of torchrun do; returns their exit codes."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        arguments = (world, store.port, str(data), str(folder))
        processes = mp.spawn(target, arguments, nprocs=world, join=False).processes
    end = time.monotonic() + HANG
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        assert all(process.exitcode is not None for process in processes), f"no end within {HANG} s"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module", params=[2, 3], ids=lambda world: f"{world}ranks")
def ranks(request, data, tmp_path_factory):
    """The folder that the processes wrote, and what each of them found."""
    folder = tmp_path_factory.mktemp("ranks")
    assert start(work, request.param, data, folder) == [0] * request.param
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """Make each run in this process, once."""
    made: dict[str, Path] = {}

    def run(name: str, *more: str) -> Path:
        key = " ".join((name, *more))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("alone") / name
            Run(parse_training(words(data, made[key], *RUNS[name], *more)), progress=False).execute()
        return made[key]

    return run


def numbers(content, path="") -> dict[str, float]:
    """The numbers of a JSON file by their places, without those that measure time."""
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    else:
        return {path: content} if isinstance(content, int | float) else {}
    found: dict[str, float] = {}
    for name, value in items:
        if name not in ("seconds", "clips_per_second"):
            found |= numbers(value, f"{path}/{name}")
    return found


def assert_same_run(one: Path, other: Path) -> None:
    mine, theirs = (numbers(json.loads((run / "metrics.json").read_text())) for run in (one, other))
    assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-4)
    assert {name: mine[name] for name in mine if "/frozen" in name} == {
        name: theirs[name] for name in theirs if "/frozen" in name
    }
    losses = [name for name in mine if name.endswith("/loss")]
    assert losses
    assert [theirs[name] for name in losses] == pytest.approx([mine[name] for name in losses], abs=2e-6)
    mine, theirs = (bgs.load(run)[0].state_dict() for run in (one, other))
    gaps = torch.cat([(mine[name] - theirs[name]).abs().reshape(-1).float() for name in mine])
    # Adam divides a gradient by its size: where it is nothing but rounding, so is the sign of a step of length lr.
    assert (gaps < 1e-5).double().mean() > 0.999
    assert gaps.max() < 2e-3
    files = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (one, other)]
    same, different = ({name for name in found if "events" not in name} for found in files)
    assert same == different


def test_a_run_is_that_of_one_process(ranks, alone):
    for name in runs(len(ranks[1])):
        assert_same_run(alone(name), ranks[0] / name)
        counts = [len(list(run.rglob("events*"))) for run in (alone(name), ranks[0] / name)]
        assert counts[0] == counts[1]


def test_a_killed_run_is_taken_up_by_another_number_of_processes(ranks, alone, data):
    folder, found = ranks
    if len(found) != 2:
        pytest.skip("two processes make the run that is killed")
    state = folder / "killed/state/model.safetensors"
    assert state.is_file()
    Run(parse_training(words(data, folder / "killed", *RUNS["lora"], "--epochs", "4")), progress=False).execute()
    assert_same_run(alone("lora", "--epochs", "4"), folder / "killed")


@pytest.mark.parametrize("way", ["plain", "cached", "uneven"])
def test_fits_end_with_the_same_weights(ranks, way):
    expected, losses = embedder_after(Tiny(), Processes())
    assert torch.equal(expected["spare.weight"], Tiny().spare.weight)  # not even decayed: it has no gradient
    assert not torch.equal(expected["even.weight"], Tiny().even.weight)
    for rank in ranks[1]:
        weights, found = rank["fits"][way]
        assert found == pytest.approx(losses, abs=1e-6)
        for name in expected:
            torch.testing.assert_close(weights[name], expected[name], rtol=1e-5, atol=1e-5)
            assert torch.equal(weights[name], ranks[1][0]["fits"][way][0][name])
            assert torch.equal(rank["fits"]["again"][0][name], rank["fits"]["plain"][0][name])


def test_processes_draw_different_dropout_and_replay_it(ranks):
    drawn = [rank["fits"]["masks"] for rank in ranks[1]]
    assert sum(len(mask) for masks in drawn for mask in masks) == 2 * CLIPS
    for masks in drawn:  # once without a graph, once with it
        half = len(masks) // 2
        assert all(torch.equal(first, again) for first, again in zip(masks[:half], masks[half:], strict=True))
    (first, *_), (second, *_) = drawn[:2]
    assert not torch.equal(first, second)


def test_the_first_decides_when_training_ends(ranks):
    found = [rank["fits"]["patience"] for rank in ranks[1]]
    for fitted in found:
        assert (fitted["epochs"], fitted["best_epoch"], fitted["stopped"]) == (4, 2, "patience")
        assert fitted["scores"] == [0.2, 0.9, 0.1, 0.3]


def test_ctrl_c_on_one_ends_all_after_the_same_step(ranks):
    for rank in ranks[1]:
        fitted, weights = rank["fits"]["interrupted"]
        assert (fitted["epochs"], fitted["stopped"]) == (2, "interrupted")
        for name, weight in ranks[1][0]["fits"]["interrupted"][1].items():
            assert torch.equal(weights[name], weight)


def test_what_processes_tell_each_other(ranks):
    world = len(ranks[1])
    for number, rank in enumerate(ranks[1]):
        found = rank["exchanged"]
        assert found["told"] == {"rank": 0, "score": 0.1}
        assert found["gathered"][:, 0].tolist() == [float(r) for r in range(world) for _ in range(2 * r)]
        assert found["differ"].startswith(f"weights: on rank {world - 1} not as on rank 0")
        assert found["turn"] == 1 if number == 0 else found["turn"] > 1
        expected = (
            "ValueError: this clip is bad" if number == 0 else "OtherProcessError: rank 0 failed: ValueError: this"
        )
        assert found["failed"].startswith(expected)


def test_tables_are_those_of_one_process(ranks, data, tmp_path):
    folder, found = ranks
    files = sorted(str(path) for path in (data / "clips").iterdir())[:7]
    torch.manual_seed(0)
    embedder = Embedder(load_backbone("videomae", "tiny")).eval()
    settings = {"name": "model", "tokens": 2 * embedder.backbone.tokens_per_clip, "progress": False}
    embed_files(embedder, files, tmp_path / "one.npz", **settings)
    assert (folder / "table.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert not (folder / "table.npz.partial").exists()
    assert [rank["embedded"] for rank in found] == [7, *[None] * (len(found) - 1)]
    # A run that several processes began is finished by one, which embeds the batch that they left out alone.
    assert len(list((folder / "cut.npz.partial").iterdir())) == 3
    seen = []
    forward = embedder.forward
    embedder.forward = lambda batch: seen.append(len(batch)) or forward(batch)
    embed_files(embedder, files, folder / "cut.npz", **settings)
    assert seen == [2]
    assert np.array_equal(np.load(folder / "cut.npz")["embeddings"], np.load(tmp_path / "one.npz")["embeddings"])


def test_fewer_clips_than_processes_are_refused():
    with pytest.raises(ValueError, match="batch_clips: 3; expected at least 1 for each of 4 processes"):
        Run(TrainConfig(batch_clips=3), processes=Processes(0, 0, 4))


def test_an_error_of_one_ends_all(data, tmp_path, capfd):
    codes = start(fail, 2, data, tmp_path)
    told = capfd.readouterr().err
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [2, 2], codes
    assert "bgs.train (rank 1): the disk is gone\n" in told
    assert "bgs.train (rank 0): rank 1 failed: OSError: the disk is gone\n" in told


def test_a_process_that_waits_for_a_failed_one_ends(monkeypatch, caplog):
    """Nothing else gets a process out of a collective of NCCL."""
    codes = []
    monkeypatch.setattr(processes_module, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(processes_module, "GRACE_SECONDS", 0.001)
    store = dist.HashStore()
    waiting = Processes(0, 0, 2, store)
    monkeypatch.setattr(processes_module.os, "_exit", lambda code: (codes.append(code), waiting._ended.set()))
    with pytest.raises(ValueError, match="no more"), Processes(1, 1, 2, store):
        raise ValueError("no more")
    waiting._listen(store)
    assert codes == [1]
    assert caplog.messages == ["rank 0 ends because rank 1 failed: ValueError: no more"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is 2, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "LOCAL_RANK is 1, but"),
    ],
)
def test_processes_that_cannot_work_are_refused(environment, message, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=message):
        join()


def test_gradients_are_exchanged_in_pieces(monkeypatch):
    monkeypatch.setattr(processes_module, "BUCKET_ELEMENTS", 10)
    sizes = [4, 6, 1, 30, 5, 5, 5]
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    parameters.append(torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    pieces = [[p.numel() for p in piece] for piece in processes_module._buckets(parameters)]
    assert pieces == [[4, 6], [1], [30], [5, 5], [5], [1]]


def test_embedding_takes_the_gpu_of_its_process(monkeypatch):
    second = Processes(5, 1, 8)
    with pytest.raises(ValueError, match="device: 'cuda:1' for 8 processes; leave it out"):
        choose_device("cuda:1", second)
    assert choose_device("cpu", second) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(None, second) == choose_device("cuda", second) == torch.device("cuda:1")
    assert choose_device(None) == torch.device("cuda")


def test_accelerate_has_to_be_of_the_same_mind():
    with pytest.raises(ValueError, match=r"given 2 process\(es\), but accelerate finds 1"):
        run_module.make_accelerator(parse_training(["--precision", "fp32"]), Processes(0, 0, 2))
