"""The embedder: backbone, pooling, head and unit length, and the folder in which one is kept.

A saved folder holds

    embedder.json                what it is: backbone, checkpoint, pooling, head, and a sha256 of every other file
    preprocessing.json           how a video file becomes input (video backbones)
    head.safetensors             the weights of the head, and of attentive pooling (when there are any)
    adapter/                     LoRA in peft's own format (when there is LoRA)
    base/                        the encoder by `save_pretrained`, when the checkpoint named in embedder.json does not
                                 hold its weights: random ones, or trained ones

and loads strictly: what is absent, changed or left over is an error, never a random weight.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from bgs.data.ahead import ahead
from bgs.data.formats.writing import replacing_folder
from bgs.data.preprocess import Preprocess
from bgs.models.backbone import Backbone, backbone_class
from bgs.models.batching import clips_per_batch
from bgs.models.checkpoints import Checkpoint, check_keys, preserved_rng, weights_digest
from bgs.models.head import HeadConfig, build_head, unit_length
from bgs.models.layers import Layers
from bgs.models.lora import adapter_parameters, load_adapter
from bgs.models.pooling import AttentivePooling, Pooling

if TYPE_CHECKING:
    from bgs.models.video import VideoBackbone

Tune = Literal["lora", "full", "head"]

_FORMAT = 1
RECORD = "embedder.json"
_PREPROCESSING = "preprocessing.json"
_HEAD = "head.safetensors"
_ADAPTER = "adapter"
_BASE = "base"
_FIELDS = {"backbone", "checkpoint", "checkpoint_digest", "encoder_digest", "pooling", "head", "normalise", "files"}
# Fields of a configuration that change with the versions of libraries and not with what is computed.
_UNRELATED = {"transformers_version", "architectures", "dtype"}
_OWN = {RECORD, _PREPROCESSING, _HEAD, _ADAPTER, _BASE}


class Stimuli(Protocol):
    """What can be embedded: a numbered collection that gives batches for `Backbone.embed`."""

    def __len__(self) -> int: ...

    def batch(self, rows: Any) -> Any:
        """Return the stimuli of these rows as one batch."""


class _Clips:
    """Clips that are there as one tensor."""

    def __init__(self, clips: Tensor):
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    def batch(self, rows: Any) -> Tensor:
        return self._clips[torch.as_tensor(rows)]


class Embedder(nn.Module):
    """A backbone with a head, whose embeddings have length 1.

    Args:
        backbone: see `load_backbone`; adapters are put in by `apply_lora`, before or after.
        head: what follows the encoder; None for the published head.
        pooling: how the encoder's tokens become one vector: `default`, the backbone's own way; `mean` over the tokens;
            `cls`, the class token; or `attentive`, a learned query, which is trained with the head.
        normalise: whether embeddings are scaled to length 1.

    Attributes:
        dim: width of an embedding.
        pooler: the learned pooling; None for the fixed ones.

    Raises:
        ValueError: the backbone has no such pooling.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: HeadConfig | None = None,
        *,
        pooling: Pooling = "default",
        normalise: bool = True,
    ):
        super().__init__()
        backbone.check_pooling(pooling)
        self.backbone = backbone
        self.pooling = pooling
        self.pooler = AttentivePooling(backbone.dim) if pooling == "attentive" else None
        self.head_config = head or HeadConfig()
        self.head = build_head(self.head_config, backbone.dim)
        self.normalise = normalise
        self.dim = self.head_config.output_dim(backbone.dim)

    @property
    def preprocess(self) -> Preprocess | None:
        """How a video file becomes the backbone's input; None for text."""
        return self.backbone.preprocess

    def forward(self, batch: Any) -> Tensor:
        """Embed a batch of stimuli.

        Args:
            batch: uint8 (B, T, 3, H, W) for a video backbone, B sequences of captions for text.

        Returns:
            (B, dim) float32, of length 1 (a zero vector stays zero) unless `normalise` is off.
        """
        return self.project(self.features(batch))

    def features(self, batch: Any) -> Tensor:
        """Pool the encoder's tokens for a batch of stimuli into (B, backbone.dim): what `project` takes."""
        if self.pooler is None:
            return self.backbone.embed(batch, self.pooling)
        tokens = cast("VideoBackbone", self.backbone).embed_tokens(batch)
        pooled: Tensor = self.pooler(tokens.to(self.pooler.query.dtype))
        return pooled

    def project(self, features: Tensor) -> Tensor:
        """Take the encoder's embeddings (B, backbone.dim) to the final ones (B, dim): the head and the scaling."""
        embeddings = self.head(features.to(next(self.head.parameters(), features).dtype))
        return unit_length(embeddings) if self.normalise else embeddings.float()

    def embed_layers(self, batch: Any, layers: Layers = "all", pooling: Pooling = "mean") -> Tensor:
        """Embed a batch of stimuli by what each layer of the encoder makes of them; see `Backbone.embed_layers`."""
        return self.backbone.embed_layers(batch, layers, pooling)

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that follow the encoder: the head's and those of attentive pooling."""
        return [*self.head.parameters(), *([] if self.pooler is None else self.pooler.parameters())]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that `set_trainable` left open, for the optimiser."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def embed_all(self, stimuli: Stimuli, *, batch_size: int = 32, progress: bool = False) -> Tensor:
        """Embed a whole collection in eval mode, in order, and leave every module's mode as it was.

        Args:
            stimuli: clips (`ClipSet`) or captions (`CaptionStimuli`).
            batch_size: stimuli in one forward pass; it changes the result by no more than rounding.
            progress: whether to show a progress bar.

        Returns:
            (N, dim) float32 on the CPU.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size}; expected at least 1")
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            starts = range(0, len(stimuli), batch_size)
            groups = (np.arange(start, min(start + batch_size, len(stimuli))) for start in starts)
            batches = ahead(stimuli.batch, groups)
            bar = tqdm(batches, total=len(starts), desc="embedding", unit="batch", disable=not progress, leave=False)
            parts = [self(batch).cpu() for batch in bar]
        finally:
            for module, mode in modes.items():
                module.training = mode
        return torch.cat(parts) if parts else torch.empty(0, self.dim)

    def embed(
        self,
        stimuli: Sequence[str | os.PathLike[str]] | Sequence[Sequence[str]] | Tensor,
        *,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Embed videos, or captions for a backbone of text; see `python -m bgs.embed` for many of them.

        Args:
            stimuli: N video files, or clips as `preprocess` makes them: uint8 (N, T, 3, H, W). For text, one caption
                or several for each of N clips.
            batch_size: stimuli in one forward pass; None for as many as suit the device.
            progress: whether to show a progress bar.

        Returns:
            (N, dim) float32 on the CPU, in the order given.

        Raises:
            ClipError: a file cannot be used.
            ValueError: a single file or caption instead of a sequence of them.
        """
        if isinstance(stimuli, str | os.PathLike):
            raise ValueError(f"embed: expected a sequence of files or captions, got one: {str(stimuli)!r}")
        size = clips_per_batch(self.backbone) if batch_size is None else batch_size
        return self.embed_all(self._as_stimuli(stimuli), batch_size=size, progress=progress)

    def _as_stimuli(self, given: Any) -> Stimuli:
        if isinstance(given, Tensor):
            return _Clips(given)
        if self.preprocess is None:
            from bgs.models.text import CaptionStimuli

            return CaptionStimuli([[captions] if isinstance(captions, str) else captions for captions in given])
        from bgs.data.clips import ClipSet  # which needs a decoder

        return ClipSet(given, self.preprocess, cache=None)

    def digest(self) -> str:
        """Fingerprint what an embedding depends on: the weights, the preprocessing and how both are used."""
        config = self.backbone.model.config.to_diff_dict()
        modules = self.backbone.encoder.named_modules()
        about = {
            "backbone": self.backbone.name,
            "config": {name: value for name, value in config.items() if name not in _UNRELATED},
            "preprocess": None if self.preprocess is None else self.preprocess.to_dict(),
            "lora": {name: module.scaling for name, module in modules if isinstance(module, LoraLayer)},
            "pooling": self.pooling,
            "head": asdict(self.head_config),
            "normalise": self.normalise,
            "weights": weights_digest(self.state_dict()),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the embedder as a folder that `load` reads back to the same embeddings, bit for bit.

        The folder appears whole or not at all; an earlier embedder at that place is replaced.

        Args:
            folder: where to; its parent is made.

        Raises:
            FileExistsError: the folder holds anything that is not an embedder's, which replacing would delete.
        """
        target = Path(folder).resolve()
        if target.exists():
            foreign = sorted({path.name for path in target.iterdir()} - _OWN) if target.is_dir() else [target.name]
            if foreign:
                raise FileExistsError(f"{target}: not replaced, it holds more than an embedder: {', '.join(foreign)}")
        with replacing_folder(target) as folder:
            self._write(folder)

    def _write(self, folder: Path) -> None:
        backbone = self.backbone
        if backbone.preprocess is not None:
            _write_json(folder / _PREPROCESSING, backbone.preprocess.to_dict())
        if weights := {name: tensor.contiguous() for name, tensor in self._head_state().items()}:
            save_file(weights, folder / _HEAD, metadata={"format": "pt"})
        if isinstance(backbone.encoder, PeftModel):
            backbone.encoder.save_pretrained(str(folder / _ADAPTER), save_embedding_layers=False)
            (folder / _ADAPTER / "README.md").unlink(missing_ok=True)
        digest = backbone.digest()
        holds_base = backbone.checkpoint.kind == "tiny" or digest != backbone.checkpoint_digest
        if holds_base:
            backbone.save_base(folder / _BASE)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        record = {
            "format": _FORMAT,
            "backbone": backbone.name,
            "checkpoint": backbone.checkpoint.to_dict(),
            "checkpoint_digest": backbone.checkpoint_digest,
            "encoder_digest": digest,
            "pooling": self.pooling,
            "head": asdict(self.head_config),
            "normalise": self.normalise,
            "dim": self.dim,
            "files": {path.relative_to(folder).as_posix(): _sha256(path) for path in files},
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        }
        _write_json(folder / RECORD, record)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Embedder:
        """Read an embedder that `save` wrote: in eval mode, frozen, on the CPU.

        Args:
            folder: the embedder's folder.

        Returns:
            An embedder that gives the same embeddings, bit for bit, on the same machine.

        Raises:
            FileNotFoundError: the folder, one of its files, or the checkpoint it builds on is not there.
            ValueError: a file or the checkpoint is not what it was when the embedder was saved, or weights are
                missing or left over.
        """
        folder = Path(folder)
        record = _read_record(folder)
        files = record["files"]
        backbone = _load_encoder(folder, record)
        if f"{_ADAPTER}/adapter_config.json" in files:
            load_adapter(backbone, folder / _ADAPTER)
        with preserved_rng():
            head = HeadConfig(**record["head"])
            embedder = cls(backbone, head, pooling=record["pooling"], normalise=record["normalise"])
        expected = embedder._head_state()
        weights = load_file(folder / _HEAD) if _HEAD in files else {}
        check_keys(folder / _HEAD, expected=expected, found=weights)
        with torch.no_grad():
            for name, tensor in expected.items():
                tensor.copy_(weights[name])
        return embedder.requires_grad_(False).eval()

    def _head_state(self) -> dict[str, Tensor]:
        """The tensors that go into the head's file, by the names that they have there."""
        pooler = {} if self.pooler is None else self.pooler.state_dict(prefix="pooling.")
        return self.head.state_dict() | pooler


def set_trainable(embedder: Embedder, mode: Tune) -> None:
    """Choose what training changes; everything else is frozen.

    Args:
        embedder: its parameters' `requires_grad` is set.
        mode: `lora`, adapters and head; `full`, the whole encoder and head; `head`, the head alone. Attentive pooling
            is of the head.

    Raises:
        ValueError: the mode is unknown, `lora` without adapters, `full` with adapters, or `head` without a head.
    """
    if mode not in get_args(Tune):
        raise ValueError(f"tune: {mode!r}; expected one of {', '.join(get_args(Tune))}")
    backbone = embedder.backbone
    adapters = adapter_parameters(backbone)
    if mode == "lora" and not adapters:
        raise ValueError(f"tune: 'lora', but backbone {backbone.name!r} has no adapters; see apply_lora")
    if mode == "full" and adapters:
        raise ValueError(f"tune: 'full', but backbone {backbone.name!r} has adapters, and they would train too")
    head = embedder.head_parameters()
    if mode == "head" and not head:
        raise ValueError("tune: 'head', but the head is 'none': nothing would be trained")
    embedder.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(True)
    if mode == "lora":
        for parameter in adapters.values():
            parameter.requires_grad_(True)
    elif mode == "full":
        for parameter in backbone.encoder_parameters():
            parameter.requires_grad_(True)
    if backbone.gradient_checkpointing:
        backbone.set_gradient_checkpointing(True)  # other layers may train now


def _load_encoder(folder: Path, record: dict[str, Any]) -> Backbone:
    """Load a saved embedder's encoder, from `base/` or from the checkpoint it was, and check that it is the same."""
    checkpoint = Checkpoint.from_dict(record["checkpoint"])
    cls = backbone_class(record["backbone"])
    preprocess = None
    if _PREPROCESSING in record["files"]:
        preprocess = Preprocess.from_dict(json.loads((folder / _PREPROCESSING).read_text(encoding="utf-8")))
    if any(name.startswith(f"{_BASE}/") for name in record["files"]):
        source = folder / _BASE
        backbone = cls.from_base(source, preprocess, checkpoint)
    else:
        source = Path(checkpoint.reference)
        backbone = _load_named(cls, checkpoint, preprocess.frames if preprocess else None)
        backbone.preprocess = preprocess
    if backbone.checkpoint_digest != record["encoder_digest"]:
        raise ValueError(
            f"{source}: the encoder's weights are not those that {folder} was saved with "
            f"(sha256 {backbone.checkpoint_digest}, expected {record['encoder_digest']})"
        )
    backbone.checkpoint_digest = record["checkpoint_digest"]
    return backbone


def _load_named(cls: type[Backbone], checkpoint: Checkpoint, frames: int | None) -> Backbone:
    try:
        return cls.from_checkpoint(checkpoint, frames=frames)
    except FileNotFoundError:
        if checkpoint.kind != "hub" or checkpoint.revision is None:
            raise
        # The hub keeps safetensors that it converted itself outside the commit; the caller checks the weights.
        return cls.from_checkpoint(replace(checkpoint, revision=None), frames=frames)


def _read_record(folder: Path) -> dict[str, Any]:
    """Read `embedder.json` and check every other file of the folder against it."""
    path = folder / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a saved embedder")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if record.get("format") != _FORMAT:
        raise ValueError(f"{path}: format {record.get('format')!r}; this version reads format {_FORMAT}")
    if absent := sorted(_FIELDS - record.keys()):
        raise ValueError(f"{path}: no field {', '.join(absent)}; was it saved by another version?")
    for name, expected in record["files"].items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file, but {path} lists it")
        if (found := _sha256(file)) != expected:
            raise ValueError(f"{file}: changed since it was saved (sha256 {found}, expected {expected})")
    return record


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
