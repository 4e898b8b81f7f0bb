"""From a name to an embedder: tells runs, saved embedders and models of transformers apart, and finds the backbone."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from bgs.models.backbone import BACKBONES, backbone_class, load_backbone
from bgs.models.checkpoints import Checkpoint, quiet_transformers, resolve_checkpoint, unreadable_as_not_found
from bgs.models.embedder import RECORD, Embedder
from bgs.models.head import HeadConfig

# The folder of the embedder inside a run's.
_IN_RUN = "model"
# What sentence-transformers writes beside the files of transformers.
_SENTENCES = "modules.json"


def load_embedder(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    frames: int | None = None,
) -> Embedder:
    """Load an embedder by the name of a run, a saved embedder or a model; see `bgs.load`."""
    chosen = _dtype(dtype)
    folder = Path(source).expanduser()
    for saved in (folder / _IN_RUN, folder):
        if (saved / RECORD).is_file():
            embedder = Embedder.load(saved)
            _check_frames(saved, embedder, frames)
            return embedder.to(device, chosen)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no model there; expected a run ({_IN_RUN}/{RECORD}), an embedder ({RECORD}) or a model of "
            "transformers (config.json)"
        )
    checkpoint = resolve_checkpoint("load", source)
    backbone = load_backbone(backbone_of(checkpoint), checkpoint.reference, frames=frames)
    return Embedder(backbone, HeadConfig(kind="none")).requires_grad_(False).eval().to(device, chosen)


def backbone_of(checkpoint: Checkpoint) -> str:
    """Name the backbone that loads a checkpoint, by `model_type` of its `config.json`.

    Args:
        checkpoint: a folder or hub checkpoint.

    Raises:
        FileNotFoundError: there is no `config.json`, or the hub cannot be reached.
        ValueError: it is of no kind that is known here.
    """
    with unreadable_as_not_found("load", checkpoint), quiet_transformers():
        config, _ = PreTrainedConfig.get_config_dict(checkpoint.reference, revision=checkpoint.revision)
        found = config.get("model_type")
        known: dict[str, str] = {}
        for name in BACKBONES:
            known |= dict.fromkeys(getattr(backbone_class(name), "model_types", ()), name)
        if found in known:
            return known[found]
        if _has_file(checkpoint, _SENTENCES):
            return "text"
    raise ValueError(
        f"{checkpoint.reference}: config.json says model_type {found!r}; expected one of {', '.join(sorted(known))}, "
        f"or a sentence encoder ({_SENTENCES})"
    )


def _has_file(checkpoint: Checkpoint, name: str) -> bool:
    found = cached_file(
        checkpoint.reference, name, revision=checkpoint.revision, _raise_exceptions_for_missing_entries=False
    )
    return found is not None


def _check_frames(folder: Path, embedder: Embedder, frames: int | None) -> None:
    kept = None if embedder.preprocess is None else embedder.preprocess.frames
    if frames is not None and frames != kept:
        sees = "sees none" if kept is None else f"was saved with {kept} per clip"
        raise ValueError(f"frames: {frames}, but the embedder in {folder} {sees}")


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    if name is None:
        return None
    found = getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype: {name!r}; expected a floating-point type such as 'float32' or 'bfloat16'")
    return found
