"""Where the embeddings of an evaluation come from: a run, a backbone, captions, ratings, or a file of embeddings that
were computed anywhere; all for the same items.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from bgs.config import FormatConfig
from bgs.data.ahead import ahead
from bgs.data.clips import NAMES_IN_ERROR, VIDEO_SUFFIXES
from bgs.data.judgments import Dataset
from bgs.embedding.tables import Table, read_table
from bgs.inputs import stimuli_of
from bgs.models import Embedder, HeadConfig, load_backbone
from bgs.models.fused import run_fused
from bgs.models.pooling import Pooling

logger = logging.getLogger(__name__)

RUN_RECORD = "run.json"
CAPTIONS, RATINGS = "captions", "ratings"
"""Names of sources that are in the data itself."""

BATCH = 16


@dataclass(frozen=True, eq=False)
class Task:
    """The items that are evaluated on.

    Attributes:
        dataset: judgments, captions, ratings.
        sets: item rows; one set for an ordinary evaluation, one for each fold under cross-validation.
        clips: folder of the video files; None for `clips` in the data folder.
        cache: folder for decoded clips; None for the default one.
        min_clip: a clip shorter than this is refused, seconds; None for what a model's preprocessing says.
    """

    dataset: Dataset
    sets: tuple[NDArray[np.int64], ...]
    clips: str | None = None
    cache: str | None = None
    min_clip: float | None = None

    def judged(self, number: int) -> NDArray[np.int64]:
        """Item rows of a set that judgments within it are about, ascending.

        Raises:
            ValueError: no judgment shows three of the items.
        """
        rows = self.sets[number]
        within = self.dataset.judgments.among(rows)
        if not len(within):
            raise ValueError(
                f"data: no judgment in {self.dataset.folder} shows three of the {len(rows)} clips asked for"
            )
        return np.unique(within.triplets)


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of some items.

    Attributes:
        vectors: (n, D).
        layers: (L, n, width), what each layer of the encoder makes of them; None unless asked for.
        numbers: of the L layers.
    """

    vectors: Tensor
    layers: NDArray[np.float32] | None = None
    numbers: tuple[int, ...] = ()


class Source(Protocol):
    """Gives embeddings of items.

    Attributes:
        name: heading of tables and figures.
        has_layers: whether it can give them layer by layer.
    """

    @property
    def name(self) -> str: ...

    @property
    def has_layers(self) -> bool: ...

    def check(self, task: Task) -> None:
        """Make sure, before anything is computed, that the items of a task can be embedded."""

    def has(self, task: Task, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell of which items, besides the judged ones, there can be embeddings: (n,)."""

    def embed(self, task: Task, number: int, rows: NDArray[np.int64], *, layers: bool = False) -> Embedded:
        """Embed items of one of the task's sets.

        Args:
            task: what is evaluated on.
            number: of the set.
            rows: items of the set.
            layers: whether to give them layer by layer as well.
        """


class RunSource:
    """A finished run.

    Args:
        folder: of the run.

    Raises:
        FileNotFoundError: no run there.
    """

    has_layers = True

    def __init__(self, folder: Path) -> None:
        record = folder / RUN_RECORD
        if not record.is_file():
            raise FileNotFoundError(f"{record}: no such file; expected the folder of a finished run")
        self.name = str(folder)
        self._folder = folder
        self.record: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        self.settings: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))

    def format(self, given: FormatConfig) -> FormatConfig:
        """Return how a table of judgments is read: as given, and as in the run where that says nothing."""
        chosen = {name: value for name, value in vars(given).items() if value is not None}
        return FormatConfig(**self.settings["format"] | chosen)

    def task(self, dataset: Dataset, split: str, clips: str | None, cache: str | None) -> Task:
        """Return the items of a split as the run divided its clips, found by name in the data.

        Raises:
            ValueError: the run has no such split, or the data none of its clips.
        """
        if split == "all":
            names = [list(dataset.items)]
        elif "folds" in self.record and split == "test":
            names = [fold["held_out"] for fold in self.record["folds"]]
        elif split in self.record["splits"]:
            names = [self.record["splits"][split]]
        else:
            raise ValueError(f"split: {self._folder} has no {split} clips; it has {', '.join(self.record['splits'])}")
        place = {name: row for row, name in enumerate(dataset.items)}
        sets = tuple(np.array([place[name] for name in part if name in place], dtype=np.int64) for part in names)
        for part, rows in zip(names, sets, strict=True):
            if not len(rows):
                raise ValueError(
                    f"split: none of the {len(part)} {split} clips of {self._folder} is in {dataset.folder}"
                )
        return Task(dataset, sets, clips, cache, self.settings["min_clip"])

    def check(self, task: Task) -> None:
        """See `Source`; says how many of the items the run was trained on."""
        for number in range(len(task.sets)):
            folder = self._model(task, number)
            trained = set(self.record["splits"].get("train", ())) if folder.parent == self._folder else set()
            seen = trained & {task.dataset.items[row] for row in task.sets[number]}
            if seen:
                logger.warning("%s: %d of %d clips were trained on", self.name, len(seen), len(task.sets[number]))

    def has(self, task: Task, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `Source`."""
        return np.ones(len(rows), dtype=bool)

    def embed(self, task: Task, number: int, rows: NDArray[np.int64], *, layers: bool = False) -> Embedded:
        """See `Source`; under cross-validation by the model of the fold that held the items out."""
        return embed_items(Embedder.load(self._model(task, number)), task, rows, layers=layers)

    def _model(self, task: Task, number: int) -> Path:
        items = {task.dataset.items[row] for row in task.sets[number]}
        for fold, record in enumerate(self.record.get("folds", ())):
            if items <= set(record["held_out"]):
                return self._folder / f"fold-{fold}/model"
        if len(task.sets) > 1 and "folds" in self.record:
            raise ValueError(f"{self.name}: cross-validated with other folds, so that it cannot be compared")
        return self._folder / "model"


class BackboneSource:
    """A backbone as it is, its embeddings compared by cosine.

    Args:
        backbone: name of the backbone.
        checkpoint: hub id or folder; None for the published default.
        frames: frames per clip; None for the checkpoint's own.
        size: pixels per side of a frame, or height and width; None for the checkpoint's own.
        pooling: how the encoder's tokens become one vector.
        seed: of the random weights of the checkpoint `tiny`.
        name: heading; None for the backbone's name.

    Raises:
        ValueError: a learned pooling, which a backbone as it is does not have.
    """

    has_layers = True

    def __init__(
        self,
        backbone: str,
        checkpoint: str | None = None,
        *,
        frames: int | None = None,
        size: int | Sequence[int] | None = None,
        pooling: Pooling = "default",
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        if pooling == "attentive":
            raise ValueError("pooling: 'attentive' is learned in training; a backbone as it is has none")
        self.name = name or backbone
        self._asked = {"seed": seed, "frames": frames, "size": size}
        self._backbone, self._checkpoint, self._pooling = backbone, checkpoint, pooling

    @cached_property
    def _embedder(self) -> Embedder:
        found = load_backbone(self._backbone, self._checkpoint, **self._asked)  # type: ignore[arg-type]
        return Embedder(found, HeadConfig(kind="none"), pooling=self._pooling)

    def check(self, task: Task) -> None:
        """See `Source`; loads the backbone, which refuses what does not fit it."""
        if self._embedder.preprocess is None and not task.dataset.captions:
            raise ValueError(f"{self.name}: {task.dataset.folder} has no captions, which backbone 'text' reads")

    def has(self, task: Task, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `Source`."""
        return np.ones(len(rows), dtype=bool)

    def embed(self, task: Task, number: int, rows: NDArray[np.int64], *, layers: bool = False) -> Embedded:
        """See `Source`."""
        return embed_items(self._embedder, task, rows, layers=layers)


class RatingsSource:
    """The ratings of the items, each scaled to mean 0 and standard deviation 1: what people say rather than see."""

    name = RATINGS
    has_layers = False

    def check(self, task: Task) -> None:
        """See `Source`."""
        ratings = task.dataset.ratings
        if ratings is None:
            raise ValueError(f"{self.name}: {task.dataset.folder} has no ratings (annotations.csv)")
        for number in range(len(task.sets)):
            for row in task.judged(number):
                if not np.isfinite(ratings.values[row]).all():
                    which = ratings.names[int(np.isnan(ratings.values[row]).argmax())]
                    raise ValueError(f"{self.name}: {task.dataset.items[row]} has no rating {which!r}")

    def has(self, task: Task, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `Source`."""
        assert task.dataset.ratings is not None
        return np.asarray(np.isfinite(task.dataset.ratings.values[rows]).all(axis=1))

    def embed(self, task: Task, number: int, rows: NDArray[np.int64], *, layers: bool = False) -> Embedded:
        """See `Source`."""
        assert task.dataset.ratings is not None
        values = task.dataset.ratings.values[rows]
        spread = values.std(axis=0)
        return Embedded(torch.from_numpy((values - values.mean(axis=0)) / np.where(spread > 0, spread, np.inf)))


class FileSource:
    """Embeddings in a file, computed anywhere; see `read_table`. Of a file with layers the last is the embedding.

    A row is an item's if its file is named as the item is: exactly, else without its folders, else without its folders
    and video suffix.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as a table of embeddings.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        self._table: Table = read_table(path)

    @property
    def has_layers(self) -> bool:
        """Whether the file has layers."""
        return self._table.layers is not None

    def check(self, task: Task) -> None:
        """See `Source`."""
        for number in range(len(task.sets)):
            self._places(task, task.judged(number))

    def has(self, task: Task, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `Source`."""
        found = self._find(task, rows)
        return np.array([task.dataset.items[row] in found for row in rows], dtype=bool)

    def embed(self, task: Task, number: int, rows: NDArray[np.int64], *, layers: bool = False) -> Embedded:
        """See `Source`."""
        values = self._table.embeddings[self._places(task, rows)]
        if self._table.layers is None:
            return Embedded(torch.from_numpy(values))
        by_layer = np.ascontiguousarray(values.transpose(1, 0, 2))
        last = int(np.argmax(self._table.layers))
        return Embedded(torch.from_numpy(by_layer[last]), by_layer if layers else None, tuple(self._table.layers))

    def _places(self, task: Task, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the table that hold items of the data set."""
        found = self._find(task, rows)
        items = [task.dataset.items[row] for row in rows]
        missing = [item for item in items if item not in found]
        if missing:
            listed = ", ".join(missing[:NAMES_IN_ERROR]) + (", ..." if len(missing) > NAMES_IN_ERROR else "")
            raise ValueError(
                f"{self._path}: no embedding of {len(missing)} of {len(items)} items: {listed} "
                f"(the file has {len(self._table.files)} rows, such as {', '.join(self._table.files[:1])})"
            )
        return np.array([found[item] for item in items], dtype=np.int64)

    def _find(self, task: Task, rows: NDArray[np.int64]) -> dict[str, int]:
        """Rows of the table by item, of the items that it has."""
        found: dict[str, int] = {}
        for plain in (str, _without_folders, _stem):
            known: dict[str, list[int]] = {}
            for place, file in enumerate(self._table.files):
                known.setdefault(plain(file), []).append(place)
            for item in (task.dataset.items[row] for row in rows):
                places = known.get(plain(item), [])
                if item in found or not places:
                    continue
                if len(places) > 1:
                    several = ", ".join(self._table.files[place] for place in places[:NAMES_IN_ERROR])
                    raise ValueError(f"{self._path}: several rows fit item {item!r}: {several}")
                found[item] = places[0]
        return found


def find_source(name: str, seed: int = 0) -> Source:
    """Find what a word of the command line means: `captions`, `ratings`, a run's folder, or a file of embeddings.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without a run.
        ValueError: a file that is no table of embeddings.
    """
    if name == CAPTIONS:
        return BackboneSource("text", seed=seed, name=CAPTIONS)
    if name == RATINGS:
        return RatingsSource()
    path = Path(name)
    if path.is_dir():
        return RunSource(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{name}: no such file or folder; expected a table of embeddings, a run, {CAPTIONS!r} or {RATINGS!r}"
        )
    return FileSource(path)


def embed_items(embedder: Embedder, task: Task, rows: NDArray[np.int64], *, layers: bool = False) -> Embedded:
    """Embed items of a task by a model, on a GPU where there is one.

    Args:
        embedder: the model.
        task: where the items come from.
        rows: items of the data set.
        layers: whether to give the mean over the tokens of every layer as well.
    """
    dataset = task.dataset
    items = tuple(dataset.items[row] for row in rows)
    stimuli = stimuli_of(dataset, items, embedder.preprocess, task.clips, task.cache, task.min_clip)
    run_fused(embedder.to("cuda" if torch.cuda.is_available() else "cpu").backbone)
    vectors = embedder.embed_all(stimuli, batch_size=BATCH, progress=True)
    if not layers:
        return Embedded(vectors)
    starts = range(0, len(rows), BATCH)
    batches = [np.arange(start, min(start + BATCH, len(rows))) for start in starts]
    bar = tqdm(ahead(stimuli.batch, batches), total=len(batches), desc="layers", unit="batch", leave=False)
    with torch.no_grad():
        parts = [embedder.eval().embed_layers(batch, "all").float().cpu() for batch in bar]
    return Embedded(vectors, torch.cat(parts, dim=1).numpy(), tuple(range(embedder.backbone.depth + 1)))


def _without_folders(name: str) -> str:
    return PurePath(name.replace("\\", "/")).name


def _stem(name: str) -> str:
    plain = PurePath(_without_folders(name))
    return plain.stem if plain.suffix.lower() in VIDEO_SUFFIXES else plain.name
