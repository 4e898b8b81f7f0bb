"""What every process of `test_distributed.py` runs, in a module of its own that a new process can import. Each
writes what it found to `<folder>/<rank>.pt`.
"""

import importlib.util
import json
import os
import signal
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from bgs import processes as processes_module
from bgs import train
from bgs.cli import parse_training
from bgs.config import HeadConfig, LossConfig, OptimConfig, SelectionConfig, TrainConfig
from bgs.data.clips import ClipSet
from bgs.data.judgments import Judgments
from bgs.embedding.run import embed_files
from bgs.models import Embedder, load_backbone
from bgs.processes import OtherProcessError, Processes, join
from bgs.training import fit as fit_module
from bgs.training.fit import Fit, Fitted
from bgs.training.run import Run

CLIPS = 13
COUNTS = {2: (13, 0), 3: (4, 0, 9)}
"""Clips of a batch on every process, where they are divided otherwise than evenly."""


def words(data: Path, output: Path, *more: str) -> list[str]:
    """The command line of a run without chance: no dropout, no augmentation."""
    chosen = ["--data", str(data), "--checkpoint", "tiny", "--tiny", "{}", "--output", str(output), "--epochs", "2"]
    chosen += ["--batch-clips", "11", "--resamples", "5", "--lora.dropout", "0", "--head.dropout", "0"]
    return [*chosen, "--augment", "null", "--optim.anchor", "0.02", *more]


RUNS = {
    "lora": ["--tune", "lora", "--gradient-checkpointing", "true", "--optim.micro_clips", "3"],
    "full": [
        "--tune",
        "full",
        "--pooling",
        "attentive",
        "--epochs",
        "1",
        "--mode",
        "triplet",
        "--optim.clip_norm",
        "0",
    ],
    "text": ["--backbone", "text", "--selection.inner_folds", "2", "--epochs", "3"],
    "head": ["--tune", "head", "--folds", "2", "--loss.pair_weights", "counts", "--triplet", "margin"],
}


def runs(world: int) -> list[str]:
    """Name the runs that so many processes make, the last by the command line."""
    if world == 3:
        return ["full", "head"]
    return ["text", "lora"] if importlib.util.find_spec("sentence_transformers") else ["lora"]


class Tiny(nn.Module):
    """The parts of an embedder that a fit looks at; `spare` gets no gradient, `even` only from even rows."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.dropout = nn.Identity(), nn.Dropout(dropout)
        self.head, self.dim = nn.Linear(4, 4), 4
        self.spare, self.even = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.features = torch.randn(CLIPS, 4)
        self.masks: list[Tensor] = []

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def embed(self, rows: np.ndarray, training: bool) -> Tensor:
        features = self.features[rows]
        found = self.head(features)
        if (rows % 2 == 0).any():
            found = found + torch.from_numpy(rows % 2 == 0)[:, None] * self.even(features)
        if training and self.dropout.p:
            self.dropout.train()
            mask = self.dropout(torch.ones(len(rows), 4))
            self.masks.append(mask)
            found = found * mask
        return found


class Scripted:
    """A validation that scores differently on every process, by these scores on the first."""

    def __init__(self, rank: int, scores: list[float]) -> None:
        self.rows, self._rank, self._scores = np.arange(CLIPS), rank, iter(scores)

    def score(self, embeddings: Tensor) -> float:
        assert embeddings.shape == (CLIPS, 4)
        return next(self._scores) if self._rank == 0 else float(-self._rank)


def fit_of(embedder: Tiny, processes: Processes, **settings) -> Fit:
    rng = np.random.default_rng(0)
    triplets = np.array([rng.choice(CLIPS, 3, replace=False) for _ in range(300)])
    people = Judgments(items=tuple(f"clip{row}" for row in range(CLIPS)), triplets=triplets)
    chosen = {name: settings.pop(name) for name in ("validation", "state") if name in settings}
    patience = settings.pop("patience", 0)
    config = TrainConfig(
        lr=0.05,
        epochs=settings.pop("epochs", 4),
        batch_clips=CLIPS,
        head=HeadConfig(),
        loss=LossConfig(),
        optim=OptimConfig(**{"weight_decay": 0.1, "anchor": 0.1} | settings),
        selection=SelectionConfig(patience=patience),
    )
    accelerator = Accelerator(cpu=True)
    return Fit(
        embedder,
        embedder.embed,
        people,
        np.arange(CLIPS),
        config,
        accelerator,
        progress=False,
        processes=processes,
        **chosen,
    )


class Divided(Processes):
    """Processes that divide work, but do not wait for each other: each is killed on its own."""

    def tell(self, value):
        return self.told

    def agree(self, what: str, value: str) -> None:
        pass

    def wait(self) -> None:
        raise Killed


class Unevenly(Processes):
    """Processes of which one has nothing to embed."""

    def shares(self, items):
        if len(items) != CLIPS:
            return super().shares(items)
        return np.split(items, np.cumsum(COUNTS[self.number])[:-1])


def fits(processes: Processes) -> dict[str, object]:
    """Fit a small model in several ways."""
    found: dict[str, object] = {}
    for name, settings in {"plain": {}, "again": {}, "cached": {"micro_clips": 2}}.items():
        embedder = Tiny()
        history = fit_of(embedder, processes, **settings).run().history
        found[name] = embedder.state_dict(), [record["loss"] for record in history]
    embedder = Tiny()
    uneven = Unevenly(processes.rank, processes.local_rank, processes.number)
    found["uneven"] = embedder_after(embedder, uneven)
    embedder = Tiny(dropout=0.5)
    fit_of(embedder, processes, micro_clips=2, epochs=1).run()
    found["masks"] = embedder.masks
    embedder = Tiny()
    validation = Scripted(processes.rank, [0.2, 0.9, 0.1, 0.3, 0.95])
    found["patience"] = vars(fit_of(embedder, processes, validation=validation, patience=2, epochs=9).run())
    found["interrupted"] = interrupted(processes)
    return found


def embedder_after(embedder: Tiny, processes: Processes):
    history = fit_of(embedder, processes).run().history
    return embedder.state_dict(), [record["loss"] for record in history]


def interrupted(processes: Processes) -> tuple[Fitted, dict[str, Tensor]]:
    """Ctrl-C reaches the last process alone, while it embeds."""
    embedder = Tiny()
    fit, embed, calls = fit_of(embedder, processes, epochs=9), embedder.embed, []

    def embed_and_break(rows: np.ndarray, training: bool) -> Tensor:
        calls.append(len(rows))
        if len(calls) == 3 and processes.rank == processes.number - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return embed(rows, training)

    fit._embed = embed_and_break
    fitted = fit.run()
    processes._interrupted = False
    return vars(fitted), embedder.state_dict()


class Killed(BaseException):
    """Stands for a kill of all processes."""


def killed(data: Path, output: Path, processes: Processes) -> None:
    """Run until two epochs are trained and their state is written."""
    epoch, seconds, count = Fit._epoch, fit_module.STATE_SECONDS, []

    def dies(self, bar) -> None:
        if len(count) == 2:
            raise Killed
        count.append(epoch(self, bar))

    fit_module.STATE_SECONDS, Fit._epoch = -1.0, dies
    try:
        Run(config_of(data, output, "--epochs", "4"), progress=False, processes=processes).execute()
    except Killed:
        processes.wait()
    finally:
        fit_module.STATE_SECONDS, Fit._epoch = seconds, epoch


def config_of(data: Path, output: Path, *more: str) -> TrainConfig:
    return parse_training(words(data, output, *RUNS["lora"], *more))


def exchanged(processes: Processes) -> dict[str, object]:
    """Call what the processes exchange."""
    rank, number = processes.rank, processes.number
    found: dict[str, object] = {"told": processes.tell({"rank": rank, "score": 0.1 + rank})}
    counts = [2 * other for other in range(number)]
    own = torch.full((counts[rank], 3), float(rank))
    found["gathered"] = processes.gather(own, counts)
    try:
        processes.agree("weights", "one" if rank < number - 1 else "other")
    except ValueError as error:
        found["differ"] = str(error)
    processes.agree("weights", "one")
    # Word of this failure is not that of a later one.
    apart = Processes(rank, rank, number, dist.PrefixStore("apart", processes._store))
    log = processes._store
    with apart.in_turns():
        found["turn"] = int(log.add("turns", 1))
    try:
        with apart.in_turns():
            if rank == 0:
                raise ValueError("this clip is bad")
            raise AssertionError("the others' turn comes although the first failed")
    except (ValueError, OtherProcessError) as error:
        found["failed"] = f"{type(error).__name__}: {error}"
    return found


def work(rank: int, world: int, port: int, data: str, folder: str) -> None:
    """Join the others, run everything, and write what came out."""
    begin(rank, world, port)
    try:
        everything(Path(data), Path(folder), join())
    except BaseException:
        traceback.print_exc()  # torch keeps it to itself
        raise


def everything(data: Path, folder: Path, processes: Processes) -> None:
    """Run what the tests look at."""
    found: dict[str, object] = {"exchanged": exchanged(processes), "fits": fits(processes)}
    found["embedded"] = embedded(data, folder, processes)
    if processes.number == 2:
        killed(data, folder / "killed", processes)
    torch.save(found, folder / f"{processes.rank}.pt")
    *names, last = runs(processes.number)
    for name in names:
        Run(parse_training(words(data, folder / name, *RUNS[name])), progress=False, processes=processes).execute()
    processes_module.join = lambda: processes  # joined already
    assert train.main(words(data, folder / last, *RUNS[last])) == 0


def embedded(data: Path, place: Path, processes: Processes) -> object:
    """Embed files, and a second time all batches but the third, without a table."""
    files = sorted(str(path) for path in (data / "clips").iterdir())[:7]
    torch.manual_seed(0)
    embedder = Embedder(load_backbone("videomae", "tiny")).eval()
    settings = {"name": "model", "tokens": 2 * embedder.backbone.tokens_per_clip, "progress": False}
    outcome = embed_files(embedder, files, place / "table.npz", processes=processes, **settings)
    cut = Divided(processes.rank, processes.local_rank, processes.number)
    cut.told = [0, 1, 3]  # the batches that are to be made
    with suppress(Killed):
        embed_files(embedder, files, place / "cut.npz", processes=cut, **settings)
    return None if outcome is None else outcome.embedded


def fail(rank: int, world: int, port: int, data: str, folder: str) -> None:
    """The second process cannot read a clip in the middle of training, and the first hears of it."""
    begin(rank, world, port)
    batch = ClipSet.batch
    if rank == 1:

        def broken(self, rows):
            if Fit._step in seen:
                raise OSError("the disk is gone")
            return batch(self, rows)

        seen, step = [], Fit._step

        def stepping(self, rows, epoch):
            seen.append(Fit._step)
            return step(self, rows, epoch)

        Fit._step = stepping
        ClipSet.batch = broken
    code = train.main(words(Path(data), Path(folder) / "run", *RUNS["lora"]))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(code))


def begin(rank: int, world: int, port: int) -> None:
    """Set the environment as torchrun does, which keeps the store that the processes meet at."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
