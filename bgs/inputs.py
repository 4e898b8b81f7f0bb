"""What a run or an evaluation works on: judgments, splits and the stimuli themselves, brought to one numbering."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bgs.config import FormatConfig, SyntheticConfig
from bgs.data.cache import default_cache
from bgs.data.formats import load_dataset
from bgs.data.judgments import Dataset, Judgments
from bgs.data.preprocess import Preprocess
from bgs.data.splits import resolve_splits
from bgs.models.embedder import Stimuli

logger = logging.getLogger(__name__)

Splits = dict[str, NDArray[np.int64]]


def synthetic_folder(config: SyntheticConfig) -> Path:
    """Make the synthetic social animations, unless an earlier run left them in the cache, and return their folder."""
    from bgs.data.synthetic import make_dataset

    name = f"synthetic-{config.style}-{config.clips}-{config.size}px-seed{config.seed}-{config.judgments}"
    return make_dataset(
        default_cache() / name,
        config.clips,
        config.seed,
        config.style,
        size=config.size,
        judgments=config.judgments,
        mixed_judgments=0,
    )


def read_dataset(data: str, format: FormatConfig) -> Dataset:
    """Read judgments with the settings of a run; see `bgs.data.load_dataset`."""
    return load_dataset(
        data,
        items=format.items,
        choice=format.choice,
        participant=format.participant,
        choice_is=format.choice_is,
        one_indexed=format.one_indexed,
    )


def splits_of(dataset: Dataset, val_share: float, test_share: float, seed: int) -> Splits:
    """Resolve train, val and test; a test or val split without a single judgment is not one and is carved anew.

    Args:
        dataset: with the splits of its source.
        val_share: share of the training items that becomes val, where the source defines none.
        test_share: the same for test.
        seed: of what is carved.
    """
    shares, usable = {"val": val_share, "test": test_share}, {}
    for name, rows in dataset.splits.items():
        if name == "train" or len(dataset.judgments.among(rows)):
            usable[name] = rows
        else:
            logger.warning(
                "%s: the %s split has %d items but no judgment among them; %s",
                *(dataset.folder, name, len(rows)),
                f"a {name} split is taken from the training items" if shares[name] else "it is left out",
            )
    return resolve_splits(replace(dataset, splits=usable), val_share=val_share, test_share=test_share, seed=seed)


def stimuli_of(
    dataset: Dataset,
    items: tuple[str, ...],
    preprocess: Preprocess | None,
    clips: str | None = None,
    cache: str | None = None,
    min_clip: float | None = None,
) -> Stimuli:
    """Get the stimuli of some items ready: captions for text, decoded and checked clips for video.

    Args:
        dataset: where they come from.
        items: names of the items, in the order of their rows.
        preprocess: how clips become input; None for text.
        clips: folder of the video files; None for `clips` in the data folder.
        cache: folder for decoded clips; None for the default one.
        min_clip: a clip shorter than this is refused, seconds; None for what `preprocess` says.

    Returns:
        Clips or captions, row by row.

    Raises:
        FileNotFoundError: the clips, or some of them, are not there.
        ValueError: items without captions, or clips that cannot be used; all of them are named.
    """
    if preprocess is None:
        from bgs.models.text import CaptionStimuli

        if not dataset.captions:
            raise ValueError(f"data: {dataset.folder} has no captions, which backbone 'text' reads")
        return CaptionStimuli.of(items, dataset.captions)
    from bgs.data.clips import ClipSet, find_clips

    folder = Path(clips) if clips is not None else dataset.folder / "clips"
    if not folder.is_dir():
        given = "" if clips is not None else "no --clips was given, and there is "
        raise FileNotFoundError(f"clips: {given}no folder {folder}")
    if min_clip is not None:
        preprocess = replace(preprocess, min_duration=min_clip)
    found = ClipSet(find_clips(folder, items), preprocess, cache if cache is not None else default_cache() / "clips")
    found.prepare()
    return found


def stimuli_digest(stimuli: Stimuli) -> str:
    """Digest of all that an encoder is given: the content of the video files and how they become input, or captions."""
    from bgs.data.cache import content_hash
    from bgs.data.clips import ClipSet

    content: object
    if isinstance(stimuli, ClipSet):
        files = [content_hash(path) for path in stimuli.paths]
        content = {"files": files, "decoder": stimuli.decoder, "preprocess": stimuli.preprocess.to_dict()}
    else:
        content = stimuli.batch(range(len(stimuli)))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def known_ceiling(dataset: Dataset, judgments: Judgments) -> dict[str, dict[str, float]]:
    """Return the exact ceiling of judgments by simulated observers; empty for people's.

    Args:
        dataset: a folder that says how its observers judge.
        judgments: over a selection of its items.
    """
    if not (dataset.folder / "raw/utils/observers.json").is_file():
        return {}
    from bgs.data.synthetic.observers import load_observers

    place = {name: row for row, name in enumerate(dataset.items)}
    rows = np.array([place[name] for name in judgments.items])
    found = load_observers(dataset.folder).ceiling(rows[judgments.triplets])
    return {
        "odd_one_out.three_way": {"upper": found.three_way},
        "odd_one_out.two_way": {"upper": found.two_way},
    }
