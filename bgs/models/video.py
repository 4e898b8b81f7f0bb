"""What the video backbones share: uint8 clips in, pixels normalised on the device, weights loaded by transformers."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from bgs.data.preprocess import Preprocess
from bgs.models.backbone import Backbone
from bgs.models.checkpoints import (
    TINY,
    Checkpoint,
    load_encoder,
    preserved_rng,
    processor_folder,
    quiet_transformers,
    read_config,
)
from bgs.models.layers import Layers, layer_numbers, watch_layers
from bgs.models.pooling import Pooling

logger = logging.getLogger(__name__)

# Shared by the tiny configurations, which are to learn from scratch on two CPU cores.
TINY_SIZE = 64
TINY_FRAMES = 8
# On synthetic clips, patches of 16 learn in 10 epochs what patches of 8 do not, at a fifth of the time per epoch.
TINY_PATCH = 16
TINY_WIDTH = 96
TINY_LAYERS = 4
TINY_HEADS = 4
# Gives layers of this width the gain that the usual 0.02 gives ViT-B: 0.02 * sqrt(768 / 96), rounded.
TINY_INIT = 0.05


class VideoBackbone(Backbone):
    """A backbone whose stimuli are video clips.

    Attributes:
        published: hub id of the default checkpoint.
        model_class: the transformers class of `encoder`.
        model_types: `model_type` values of the checkpoints it loads.
        not_needed: regex (full match) of encoder weights a checkpoint may lack, because they are never run or change
            nothing.
        not_used: regex (match at the start) of the checkpoint's weights that the encoder leaves behind.
        renamed: the encoder's names by regexes of the checkpoint's, where transformers does not know them.
        any_size: whether positions follow from the frames, so that they may be of any size.
    """

    published: ClassVar[str]
    model_class: ClassVar[type[PreTrainedModel]]
    model_types: ClassVar[tuple[str, ...]]
    not_needed: ClassVar[str | None] = None
    not_used: ClassVar[str | None] = None
    renamed: ClassVar[Mapping[str, str] | None] = None
    any_size: ClassVar[bool] = False
    preprocess: Preprocess

    @classmethod
    @abstractmethod
    def tiny_config(cls, overrides: Mapping[str, Any]) -> PreTrainedConfig:
        """The tiny configuration, with these fields set instead."""

    @classmethod
    @abstractmethod
    def input_size(cls, config: PreTrainedConfig) -> tuple[int, int]:
        """Frames per clip and pixels per side that a configuration is made for."""

    @classmethod
    @abstractmethod
    def width(cls, config: PreTrainedConfig) -> int:
        """Width of the embedding of a configuration."""

    @classmethod
    @abstractmethod
    def prepare(cls, encoder: PreTrainedModel, frames: int) -> None:
        """Make a freshly loaded encoder ready to embed clips of `frames` frames, in place.

        Raises:
            ValueError: the encoder cannot take that many frames.
        """

    @abstractmethod
    def tokens(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, T, 3, H, W) as tokens (B, N, dim), class tokens first."""

    @property
    def class_tokens(self) -> int:
        """Number of class tokens among the tokens of a clip."""
        return 0

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        return ("default", "mean", "cls", "attentive") if self.class_tokens else ("default", "mean", "attentive")

    def pool(self, tokens: Tensor, pooling: Pooling) -> Tensor:
        """Pool tokens (B, N, C) into (B, C); see `embed`."""
        number = self.class_tokens
        of_class = pooling == "cls" or (pooling == "default" and number > 0)
        return (tokens[:, :number] if of_class else tokens[:, number:]).mean(1)

    def by_clip(self, hidden: Tensor) -> Tensor:
        """Arrange the hidden states of a layer by clip, (B, N, C), class tokens first."""
        return hidden

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, frames: int | None = None) -> Self:
        fields = read_config(cls.name, checkpoint, cls.model_types)
        encoder, checkpoint = cls._load(checkpoint, cls.encoder_config(fields))
        trained_frames, size = cls.input_size(encoder.config)
        preprocess = cls._preprocess(checkpoint, trained_frames if frames is None else frames, size)
        cls.prepare(encoder, preprocess.frames)
        return cls(encoder, cls.width(encoder.config), preprocess, checkpoint)

    @classmethod
    def from_tiny(cls, seed: int, overrides: Mapping[str, Any], *, frames: int | None = None) -> Self:
        if unknown := [name for name in overrides if not hasattr(cls.tiny_config({}), name)]:
            raise ValueError(f"tiny: a configuration of {cls.name} has no {', '.join(unknown)}")
        config = cls.tiny_config(overrides)
        with preserved_rng(seed):
            encoder = cls.model_class(config)
            cls.fill_zero_embeddings(encoder)
        trained_frames, size = cls.input_size(config)
        preprocess = Preprocess.default_for(cls.name, frames=trained_frames if frames is None else frames, size=size)
        cls.prepare(encoder, preprocess.frames)
        checkpoint = Checkpoint("tiny", TINY, seed=seed, config=config.to_diff_dict())
        return cls(encoder, cls.width(config), preprocess, checkpoint)

    @classmethod
    def from_base(cls, folder: Path, preprocess: Preprocess | None, checkpoint: Checkpoint) -> Self:
        if preprocess is None:
            raise ValueError(f"{folder}: backbone {cls.name!r} needs preprocessing settings, none were given")
        encoder, _ = cls._load(Checkpoint("folder", str(folder)), None, dtype="auto")
        cls.prepare(encoder, preprocess.frames)
        return cls(encoder, cls.width(encoder.config), preprocess, checkpoint)

    @classmethod
    def default_checkpoint(cls) -> Checkpoint:
        return Checkpoint("hub", cls.published)

    @classmethod
    def _load(
        cls, checkpoint: Checkpoint, config: PreTrainedConfig | None, dtype: torch.dtype | str = torch.float32
    ) -> tuple[PreTrainedModel, Checkpoint]:
        return load_encoder(
            cls.model_class,
            cls.name,
            checkpoint,
            config=config,
            dtype=dtype,
            not_needed=cls.not_needed,
            not_used=cls.not_used,
            renamed=cls.renamed,
        )

    @classmethod
    def _preprocess(cls, checkpoint: Checkpoint, frames: int, size: int) -> Preprocess:
        """Read the checkpoint's processor settings; without any, the backbone's own, at the configuration's size."""
        try:
            preprocess = Preprocess.from_pretrained_config(processor_folder(checkpoint), frames=frames)
        except OSError as error:
            logger.warning("%s: the published preprocessing of %s is used (%s)", checkpoint.reference, cls.name, error)
            return Preprocess.default_for(cls.name, frames=frames, size=size)
        if (preprocess.height, preprocess.width) == (size, size):
            return preprocess
        logger.warning(
            "%s: the processor makes %dx%d pixels but the model takes %dx%d; resize and crop are scaled to fit",
            *(checkpoint.reference, preprocess.height, preprocess.width, size, size),
        )
        return preprocess.with_size(size)

    @classmethod
    def encoder_config(cls, fields: dict[str, Any]) -> PreTrainedConfig | None:
        """The encoder's configuration where it is not simply the checkpoint's `config.json`, else None."""
        return None

    @classmethod
    def fill_zero_embeddings(cls, encoder: PreTrainedModel) -> None:
        """Draw embeddings that transformers leaves at zero, where a frozen random encoder would be blind without."""

    @staticmethod
    def square(size: int | Sequence[int]) -> int:
        """Read an image size of a configuration: pixels per side.

        Raises:
            ValueError: the image is not square.
        """
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise ValueError(f"config.json: image size {size}; only square images are supported")
        return sides.pop()

    @property
    def tokens_per_clip(self) -> int:
        config, clip = self.model.config, self.preprocess
        tubelets = max(1, clip.frames // getattr(config, "tubelet_size", 1))
        return tubelets * (clip.height // config.patch_size) * (clip.width // config.patch_size)

    def save_base(self, folder: Path) -> None:
        encoder: Any = self.encoder
        if isinstance(encoder, PeftModel):
            encoder = copy.deepcopy(encoder).unload()
        with quiet_transformers():
            encoder.save_pretrained(folder)

    def set_size(self, size: int | Sequence[int]) -> None:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if not self.any_size:
            height, width = self.preprocess.height, self.preprocess.width
            if sides != (height, width):
                raise ValueError(f"size: this {self.name} checkpoint takes exactly {height}x{width}, got {size!r}")
            return
        patch = self.model.config.patch_size
        if len(sides) != 2 or any(side < patch or side % patch for side in sides):
            raise ValueError(
                f"size: {self.name} takes (height, width) in multiples of its patch size {patch}, got {size!r}"
            )
        self.preprocess = self.preprocess.with_size(sides)

    def embed(self, batch: Tensor, pooling: Pooling = "default") -> Tensor:
        """Embed a batch of clips.

        Args:
            batch: uint8 (B, T, 3, H, W), frames as `preprocess` makes them.
            pooling: `default`, which is the class token where there is one and else the mean over the tokens; `mean`,
                over all tokens but the class token; or `cls`.

        Returns:
            (B, dim) float tensor, not normalised, on the encoder's device.

        Raises:
            ValueError: another dtype, not the frames and pixels that the backbone is prepared for, or a pooling that
                the encoder does not have.
        """
        self._check_fixed(pooling)
        return self.pool(self.embed_tokens(batch), pooling)

    def embed_tokens(self, batch: Tensor) -> Tensor:
        """Embed a batch of clips as tokens.

        Args:
            batch: as for `embed`.

        Returns:
            (B, N, dim) float tensor on the encoder's device, class tokens first.

        Raises:
            ValueError: as for `embed`.
        """
        expected = (self.preprocess.frames, 3, self.preprocess.height, self.preprocess.width)
        if batch.dtype != torch.uint8 or batch.ndim != 5 or tuple(batch.shape[1:]) != expected:
            raise ValueError(
                f"batch: {self.name} takes uint8 (B, {', '.join(map(str, expected))}), "
                f"got {str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
            )
        pixels = self.preprocess.normalise(batch.to(self.device, non_blocking=True))
        return self.tokens(pixels.to(self.dtype))

    @torch.no_grad()
    def embed_layers(self, batch: Tensor, layers: Layers = "all", pooling: Pooling = "mean") -> Tensor:
        self._check_fixed(pooling)
        numbers = layer_numbers(layers, self.depth)
        with watch_layers(self.stack, numbers, lambda hidden: self.pool(self.by_clip(hidden), pooling)) as found:
            self.embed_tokens(batch)
        return torch.stack([found[number] for number in numbers])

    def _check_fixed(self, pooling: Pooling) -> None:
        self.check_pooling(pooling)
        if pooling == "attentive":
            raise ValueError("pooling: 'attentive' is learned, and part of an embedder: Embedder(..., pooling=...)")
