"""Where an encoder's weights come from: naming a checkpoint, reading its files and fingerprinting what was loaded.

Every backbone goes through here, so that a wrong folder, a wrong architecture, a missing weight or a changed file is
reported in one way, before any video is decoded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as _transformers_logging

from bgs.data.processor_config import PROCESSOR_FILES

TINY = "tiny"
# transformers' logging functions carry no types.
transformers_logging: Any = _transformers_logging
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by name: what to write down so that the same weights can be found again.

    Attributes:
        kind: `tiny` (random weights of a named small configuration), `folder`, `hub`, or `package` (files that an
            installed Python distribution carries).
        reference: `tiny`, the folder's absolute path, the hub id, or the distribution's name.
        revision: the hub commit or the distribution's version; None for folders and random weights.
        seed: seed of the random weights of a `tiny` checkpoint.
        config: the configuration of a `tiny` checkpoint, complete.
    """

    kind: Literal["tiny", "folder", "hub", "package"]
    reference: str
    revision: str | None = None
    seed: int | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Checkpoint:
        """Rebuild a checkpoint from `to_dict`'s output."""
        return cls(**fields)


def resolve_checkpoint(backbone: str, checkpoint: str | os.PathLike[str]) -> Checkpoint:
    """Tell whether a checkpoint argument is a folder or a hub id.

    Args:
        backbone: name of the backbone that asks, for the error.
        checkpoint: a folder written by `save_pretrained`, or a hub id such as `facebook/vjepa2-vitl-fpc64-256`.

    Raises:
        FileNotFoundError: it is neither an existing folder nor a possible hub id.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return Checkpoint("folder", str(folder.resolve()))
    if folder.exists():
        raise FileNotFoundError(f"{backbone}: checkpoint {checkpoint} is a file; expected a folder or a hub id")
    if isinstance(checkpoint, os.PathLike) or not _HUB_ID.fullmatch(checkpoint):
        raise FileNotFoundError(
            f"{backbone}: no folder {folder.absolute()}, and {str(checkpoint)!r} cannot be a hub id (owner/name)"
        )
    return Checkpoint("hub", checkpoint)


def read_config(backbone: str, checkpoint: Checkpoint, model_types: tuple[str, ...]) -> dict[str, Any]:
    """Read a checkpoint's `config.json` and check that it is of the architecture asked for.

    Args:
        backbone: name of the backbone that will hold the weights.
        checkpoint: a folder or hub checkpoint.
        model_types: the `model_type` values that this backbone can load.

    Raises:
        FileNotFoundError: there is no `config.json`, or the hub cannot be reached.
        ValueError: the checkpoint is of another architecture.
    """
    with unreadable_as_not_found(backbone, checkpoint):
        config, _ = PreTrainedConfig.get_config_dict(checkpoint.reference, revision=checkpoint.revision)
        if not config:
            raise FileNotFoundError("no config.json there")
    found = config.get("model_type")
    if found not in model_types:
        expected = " or ".join(map(repr, model_types))
        raise ValueError(
            f"{checkpoint.reference}: config.json says model_type {found!r}; backbone {backbone!r} loads {expected}"
        )
    return config


def load_encoder(
    model_class: type[PreTrainedModel],
    backbone: str,
    checkpoint: Checkpoint,
    *,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype | str = torch.float32,
    not_needed: str | None = None,
    not_used: str | None = None,
    renamed: Mapping[str, str] | None = None,
) -> tuple[PreTrainedModel, Checkpoint]:
    """Load a transformers model from safetensors files and insist that every weight was there.

    Args:
        model_class: the class to instantiate; checkpoints with a head on top load into it as well.
        backbone: name of the backbone, for errors.
        checkpoint: a folder or hub checkpoint.
        config: configuration to use in place of the checkpoint's own.
        dtype: dtype of the weights, or "auto" for the one they were saved in.
        not_needed: regex (full match) of the model's weights that may be absent, because they are never run or, at the
            zeros that they then have, change nothing.
        not_used: regex (match at the start) of the file's weights that the encoder has no place for, such as a
            classification head.
        renamed: the model's names by regexes of the file's, where they differ and transformers does not know it.

    Returns:
        The model, in eval mode, and the checkpoint with its resolved hub revision.

    Raises:
        FileNotFoundError: the files are not there, or the hub cannot be reached.
        ValueError: weights are missing, of another shape, or unknown.
    """
    with unreadable_as_not_found(backbone, checkpoint), quiet_transformers(), preserved_rng():
        loaded: Any = model_class.from_pretrained(
            checkpoint.reference,
            revision=checkpoint.revision or "main",
            config=config,
            dtype=dtype,
            use_safetensors=True,
            key_mapping=dict(renamed) if renamed else None,
            # Reported below with the rest, by name.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model, report = loaded
    missing = sorted(key for key in report["missing_keys"] if not (not_needed and re.fullmatch(not_needed, key)))
    unknown = sorted(key for key in report["unexpected_keys"] if not (not_used and re.match(not_used, key)))
    misshapen = sorted(f"{key} {tuple(a)} for {tuple(b)}" for key, a, b in report["mismatched_keys"])
    groups = (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
    faults = [f"{label}: {', '.join(names)}" for label, names in groups if names]
    if faults:
        raise ValueError(f"{checkpoint.reference}: weights do not fit backbone {backbone!r}; " + "; ".join(faults))
    if checkpoint.kind == "hub":
        # transformers does not always say which commit it loaded.
        checkpoint = replace(checkpoint, revision=processor_folder(checkpoint).name)
    return model.eval(), checkpoint


def processor_folder(checkpoint: Checkpoint) -> Path:
    """Find the folder with a checkpoint's configuration and, where it has any, its processor files.

    Those of a hub checkpoint are fetched, or taken from the cache; their folder bears the name of the commit.

    Raises:
        OSError: the hub cannot be reached and the checkpoint is not in its cache.
    """
    if checkpoint.kind != "hub":
        return Path(checkpoint.reference)
    with quiet_transformers():
        folder = Path(hf_hub_download(checkpoint.reference, "config.json", revision=checkpoint.revision)).parent
        for name in PROCESSOR_FILES:
            with suppress(EntryNotFoundError):
                hf_hub_download(checkpoint.reference, name, revision=folder.name)
    return folder


def check_keys(file: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Insist that a file's weights are exactly the expected ones, in name and shape.

    Raises:
        ValueError: weights are missing, unknown or of another shape; all of them are named.
    """
    wrong_shape = [
        f"{key} {tuple(found[key].shape)} for {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key].shape != found[key].shape
    ]
    faults = [
        f"{label}: {', '.join(keys)}"
        for label, keys in (
            ("missing", sorted(expected.keys() - found.keys())),
            ("unknown", sorted(found.keys() - expected.keys())),
            ("of another shape", wrong_shape),
        )
        if keys
    ]
    if faults:
        raise ValueError(f"{file}: weights do not fit; " + "; ".join(faults))


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Fingerprint weights by content: sha256 over names, dtypes, shapes and bytes, in the order of the names.

    Taken over the tensors and not over files, it is the same however the weights were stored, and says at save time
    whether an encoder still is what its checkpoint holds.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def unreadable_as_not_found(backbone: str, checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what transformers raises for absent files and an unreachable hub into one error that says what was tried."""
    try:
        yield
    except OSError as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        hub = f"no folder {Path(checkpoint.reference).absolute()}; the hub{offline}, {checkpoint.revision or 'main'}"
        tried = "the folder" if checkpoint.kind == "folder" else hub
        raise FileNotFoundError(
            f"{backbone}: cannot load checkpoint {checkpoint.reference!r}; tried {tried}: {error}"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and its report of keys: keys are checked, and reported, here."""
    verbosity = transformers_logging.get_verbosity()
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()


@contextmanager
def preserved_rng(seed: int | None = None, device: torch.device | None = None) -> Iterator[None]:
    """Restore torch's random state afterwards; inside, draw from `seed` when one is given.

    Args:
        seed: seed of the block, or None to go on from the current state.
        device: a CUDA device whose state is to be restored too.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            # Not torch.manual_seed, which would reseed every CUDA device as well.
            torch.default_generator.manual_seed(seed)
        yield
