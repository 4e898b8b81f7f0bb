"""Goes through the files: decodes ahead of the model, embeds batch by batch, keeps what is finished and writes the
table.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import bgs
from bgs.config import Precision
from bgs.data.clips import ClipSet
from bgs.data.video_file import ClipError
from bgs.embedding.shards import Shard, Shards
from bgs.embedding.tables import Table, write_table
from bgs.models import Embedder
from bgs.models.batching import clips_per_batch
from bgs.models.fused import is_fused
from bgs.models.layers import Layers, layer_numbers
from bgs.precision import chosen_precision
from bgs.processes import Processes

logger = logging.getLogger(__name__)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

PACKAGES = ("torch", "transformers", "av")


def choose_device(name: str | None, processes: Processes | None = None) -> torch.device:
    """Find the device of a name; without one, a GPU where there is any, of several processes each its own.

    Raises:
        ValueError: there is no such device, or one is named for several processes.
    """
    processes = processes or Processes()
    if name is None or (name == "cuda" and not processes.alone and torch.cuda.is_available()):
        return processes.device
    if not processes.alone and name != "cpu":
        raise ValueError(f"device: {name!r} for {processes.number} processes; leave it out, and each takes its own GPU")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used ({str(error).splitlines()[0]})") from error


@dataclass(frozen=True)
class Outcome:
    """How it went.

    Attributes:
        embedded: number of files in the table.
        errors: the files that could not be used, each with what is wrong with it, in their order.
    """

    embedded: int
    errors: tuple[ClipError, ...]


def embed_files(
    embedder: Embedder,
    files: Sequence[str],
    output: Path,
    *,
    name: str,
    precision: Precision = "auto",
    layers: str | None = None,
    tokens: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    processes: Processes | None = None,
) -> Outcome | None:
    """Embed video files into a table.

    Batches are those of the list of files, whichever of them could be used, and each is kept when it is finished: a run
    that goes on from another's batches gives the same bytes as one that made them all, and so do several processes.

    Args:
        embedder: on the device that it is to run on.
        files: names of the files.
        output: the table; see `write_table`.
        name: the model's, for the record.
        precision: what the encoder computes in.
        layers: instead of embeddings the mean over the tokens of each of these layers: `all`, or numbers such as
            `0,6,12`; see `Backbone.embed_layers`.
        tokens: tokens in a batch; None for what suits the device.
        workers: files decoded at a time; None for the number of usable cores, which processes of a machine share.
        progress: whether to show a progress bar.
        processes: divide the batches among them; the first writes the table, in a folder that all of them see.

    Returns:
        How many files are in the table and what was wrong with the others. With no file that could be used there is no
        table. None on every process but the first.

    Raises:
        ValueError: the model does not take videos, has no such layers, or gives embeddings that are not finite; or the
            processes would not give the same.
        FileNotFoundError: the first process does not see what another wrote.
    """
    processes = processes or Processes()
    preprocess = embedder.preprocess
    if preprocess is None:
        raise ValueError(f"{name}: embeds captions, not videos; bgs.load gives a model whose embed() takes them")
    chosen = chosen_layers(embedder, layers)
    clips = ClipSet(files, preprocess, cache=None, workers=processes.cores if workers is None else workers)
    size = clips_per_batch(embedder.backbone, tokens)
    resolved = chosen_precision(precision, on_gpu=embedder.backbone.device.type == "cuda")
    about = describe(embedder, name, clips, resolved, chosen, size)
    if not processes.alone:
        processes.agree("model, device or packages", json.dumps(about, sort_keys=True))
    shards = Shards(output, about)
    groups = [list(range(start, min(start + size, len(files)))) for start in range(0, len(files), size)]
    named = [[files[row] for row in group] for group in groups]
    found = [shards.read(names) if processes.first else None for names in named]
    missing = processes.tell([place for place, shard in enumerate(found) if shard is None])
    own = processes.share(np.array(missing, dtype=np.int64)).tolist()
    todo = [row for place in own for row in groups[place]]
    left = sum(len(groups[place]) for place in missing)
    if left < len(files):
        logger.info("%s: %d of %d files are finished already", shards.folder, len(files) - left, len(files))
    begin = time.perf_counter()
    # A batch ready, and every worker at one of the next.
    decoded = clips.stream(todo, depth=size + clips.workers)
    bar = tqdm(
        total=len(files) - left + len(todo),
        initial=len(files) - left,
        desc="embedding" if processes.alone else f"embedding (1 of {processes.number} processes)",
        unit="clip",
        disable=None if progress and processes.first else True,
    )
    with bar:
        for place in own:
            made = _embed(embedder, list(islice(decoded, len(groups[place]))), named[place], about)
            shards.write(named[place], made)
            found[place] = made
            bar.update(len(groups[place]))
    processes.wait()
    if not processes.first:
        return None
    for place in missing[len(own) :]:  # the others'
        found[place] = shards.read(named[place])
        if found[place] is None:
            raise FileNotFoundError(
                f"{shards.folder}: the batch of {named[place][0]} is not there, which another process made; all need "
                "to see the same folder and files"
            )
    results = [(names, shard) for names, shard in zip(named, found, strict=True) if shard is not None]
    kept = [name for names, shard in results for place, name in enumerate(names) if place not in shard.errors]
    errors = [ClipError(Path(names[at]), why) for names, shard in results for at, why in shard.errors.items()]
    if kept:
        parts = [shard.embeddings for _, shard in results if len(shard.embeddings)]
        write_table(output, Table(kept, np.concatenate(parts), chosen, about))
    shards.remove()
    rate = left / (time.perf_counter() - begin)
    said = f"{len(kept)} of {len(files)} files embedded" if kept else "not written: no file could be used"
    logger.info("%s: %s, %.1f clips a second", output, said, rate)
    return Outcome(len(kept), tuple(errors))


def chosen_layers(embedder: Embedder, layers: str | None) -> list[int] | None:
    """Read which layers of an encoder are wanted; see `embed_files`.

    Raises:
        ValueError: it has no such layers.
    """
    if layers is None:
        return None
    try:
        wanted: Layers = "all" if layers == "all" else [int(word) for word in layers.split(",")]
    except ValueError:
        raise ValueError(f"layers: {layers!r}; expected 'all' or numbers such as 0,6,12") from None
    numbers = layer_numbers(wanted, embedder.backbone.depth)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"layers: {layers!r} names a layer twice")
    return numbers


def describe(
    embedder: Embedder, name: str, clips: ClipSet, precision: Precision, layers: list[int] | None, clips_per_batch: int
) -> dict[str, Any]:
    """Say what embeddings come from: all that decides them besides the files, JSON-ready."""
    backbone = embedder.backbone
    device = backbone.device
    return {
        "model": name,
        "digest": embedder.digest(),
        "backbone": backbone.name,
        "checkpoint": {key: getattr(backbone.checkpoint, key) for key in ("kind", "reference", "revision", "seed")},
        "head": embedder.head_config.kind if layers is None else "none",
        "pooling": "mean" if layers is not None else embedder.pooling,
        "unit_length": embedder.normalise and layers is None,
        "layers": layers,
        "preprocess": clips.preprocess.to_dict(),
        "decoder": clips.decoder,
        "precision": precision,
        "accelerated": is_fused(backbone),
        "clips_per_batch": clips_per_batch,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {"bgs": bgs.__version__} | {package: version(package) for package in PACKAGES},
    }


@torch.no_grad()
def _embed(
    embedder: Embedder, clips: Sequence[Tensor | ClipError], names: Sequence[str], about: dict[str, Any]
) -> Shard:
    """Embed the clips of a batch that could be decoded."""
    usable = [clip for clip in clips if isinstance(clip, Tensor)]
    errors = {place: clip.reason for place, clip in enumerate(clips) if isinstance(clip, ClipError)}
    device, dtype = embedder.backbone.device.type, AUTOCAST.get(about["precision"])
    if not usable:
        return Shard(np.empty(0, np.float32), errors)
    try:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            embeddings = _vectors(embedder, torch.stack(usable), about["layers"]).float().cpu().numpy()
    except torch.OutOfMemoryError as error:
        tokens = len(usable) * (embedder.backbone.tokens_per_clip or 1)
        raise MemoryError(
            f"the GPU has no memory for {len(usable)} clips ({tokens} tokens) in a batch; try --tokens {tokens // 2}"
        ) from error
    finite = np.isfinite(embeddings).reshape(len(usable), -1).all(1)
    if not finite.all():
        kept = [name for place, name in enumerate(names) if place not in errors]
        raise ValueError(
            f"{kept[int(finite.argmin())]}: its embedding is not finite in precision {about['precision']}; try fp32"
        )
    return Shard(np.ascontiguousarray(embeddings), errors)


def _vectors(embedder: Embedder, batch: Tensor, layers: list[int] | None) -> Tensor:
    """Embed a batch as (B, dim), or by layers as (B, L, width of the encoder)."""
    if layers is not None:
        return embedder.embed_layers(batch, layers).transpose(0, 1)
    embeddings: Tensor = embedder(batch)
    return embeddings
