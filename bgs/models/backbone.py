"""What every backbone offers - preprocessing, `embed`, LoRA targets, gradient checkpointing - and how one is loaded.

A backbone wraps an unmodified transformers model as `encoder`; what differs between models is one small file each.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from bgs.data.preprocess import Preprocess
from bgs.models.checkpoints import TINY, Checkpoint, resolve_checkpoint, weights_digest
from bgs.models.layers import Layers
from bgs.models.pooling import Pooling

# Name of a backbone -> module and class; imported when asked for, so that none pays for another's dependencies.
_BACKBONES = {
    "vjepa2": ("bgs.models.vjepa2", "VJEPA2Backbone"),
    "vjepa21": ("bgs.models.vjepa21", "VJEPA21Backbone"),
    "timesformer": ("bgs.models.timesformer", "TimesformerBackbone"),
    "videomae": ("bgs.models.videomae", "VideoMAEBackbone"),
    "clip": ("bgs.models.clip", "CLIPBackbone"),
    "text": ("bgs.models.text", "TextBackbone"),
}
BACKBONES = tuple(_BACKBONES)


class Backbone(nn.Module, ABC):
    """An encoder that turns stimuli into one vector each.

    Attributes:
        name: name under which `load_backbone` finds it.
        lora_targets: regex, full match on module names inside `encoder`: the Linear layers that LoRA wraps.
        encoder: the transformers model; a `peft.PeftModel` around it once LoRA is applied.
        tail: modules between the encoder's tokens and the embedding that are never trained, such as the pooling of a
            sentence encoder.
        dim: width of an embedding.
        preprocess: how a video file becomes model input; None for text.
        checkpoint: where the weights came from.
        checkpoint_digest: `weights_digest` of what the checkpoint held.
        gradient_checkpointing: whether layers recompute their activations; see `set_gradient_checkpointing`.
    """

    name: ClassVar[str]
    lora_targets: ClassVar[str]
    gradient_checkpointing: bool = False

    def __init__(
        self,
        encoder: PreTrainedModel,
        dim: int,
        preprocess: Preprocess | None,
        checkpoint: Checkpoint,
        tail: Iterable[nn.Module] = (),
    ):
        super().__init__()
        self.encoder: nn.Module = encoder
        self.tail = nn.ModuleList(tail)
        self.requires_grad_(False).eval()
        self.dim = dim
        self.preprocess = preprocess
        self.checkpoint = checkpoint
        self.checkpoint_digest = self.digest()

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, frames: int | None = None) -> Self:
        """Load published or saved weights; see `load_backbone`."""

    @classmethod
    @abstractmethod
    def from_tiny(cls, seed: int, overrides: Mapping[str, Any], *, frames: int | None = None) -> Self:
        """Build the tiny configuration with random weights; see `load_backbone`."""

    @classmethod
    @abstractmethod
    def default_checkpoint(cls) -> Checkpoint:
        """The checkpoint that is meant when none is named."""

    @classmethod
    @abstractmethod
    def from_base(cls, folder: Path, preprocess: Preprocess | None, checkpoint: Checkpoint) -> Self:
        """Load encoder weights that `save_base` wrote, keeping the name of the checkpoint they grew from."""

    @abstractmethod
    def save_base(self, folder: Path) -> None:
        """Write the encoder's own weights, without adapters, as its library does (`save_pretrained`)."""

    @abstractmethod
    def embed(self, batch: Any, pooling: Pooling = "default") -> Tensor:
        """Embed a batch of stimuli.

        Args:
            batch: uint8 (B, T, 3, H, W) for a video backbone; a list of B sequences of captions for text.
            pooling: how tokens become one vector, one of `poolings` other than `attentive`, which is the embedder's.

        Returns:
            (B, dim) float tensor, not normalised, on the encoder's device.
        """

    @abstractmethod
    def embed_layers(self, batch: Any, layers: Layers = "all", pooling: Pooling = "mean") -> Tensor:
        """Embed a batch of stimuli by what each layer makes of them, in one forward pass without gradients.

        These are the hidden states as they go from layer to layer: without the encoder's final norm or projection. They
        are pooled as they appear, so that no more is kept of them than that.

        Args:
            batch: as for `embed`.
            layers: 0 is what enters the first layer, the patch (or word) embeddings with their positions; i is what
                the i-th layer gives; negative numbers count from the last; `all` for 0 to `depth`.
            pooling: `mean` over the tokens, `cls`, or `default` for the tokens that `embed` reads.

        Returns:
            (L, B, C) float tensor on the encoder's device, C the encoder's width.

        Raises:
            ValueError: a layer or a pooling that the encoder does not have.
        """

    @property
    def model(self) -> Any:
        """The transformers model itself, a `PreTrainedModel`, with the adapters inside it when there are any."""
        return self.encoder.get_base_model() if isinstance(self.encoder, PeftModel) else self.encoder

    @property
    def device(self) -> torch.device:
        """Device of the encoder's weights."""
        return next(self.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the encoder's weights."""
        return next(p.dtype for p in self.encoder.parameters() if p.is_floating_point())

    @property
    def depth(self) -> int:
        """Number of transformer layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def stack_name(self) -> str:
        """Name of the list of transformer layers inside the encoder."""
        return "encoder.layer"

    @property
    def stack(self) -> nn.ModuleList:
        """The transformer layers, in order."""
        return cast(nn.ModuleList, self.model.get_submodule(self.stack_name))

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The ways in which tokens can become one vector."""
        return ("default",)

    def check_pooling(self, pooling: str) -> None:
        """Insist that tokens can be pooled in this way.

        Raises:
            ValueError: they cannot.
        """
        if pooling not in self.poolings:
            raise ValueError(
                f"pooling: {pooling!r}; backbone {self.name!r} has {', '.join(self.poolings)}"
                + (" (it has no class token)" if pooling == "cls" else "")
            )

    def set_size(self, size: int | Sequence[int]) -> None:
        """Take frames of another size than the checkpoint was made for.

        Args:
            size: pixels per side, or height and width.

        Raises:
            ValueError: the encoder cannot take that size.
        """
        raise ValueError(f"size: backbone {self.name!r} sees no frames, got {size!r}")

    @property
    def tokens_per_clip(self) -> int | None:
        """Tokens that the encoder makes of a clip, class tokens left out; None where clips differ."""
        return None

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute each layer's activations in the backward pass (on) or keep them (off).

        Layers below the first one that trains keep nothing for a backward pass, and so have nothing to recompute.
        """
        self.gradient_checkpointing = on
        model = self.model
        # transformers renames gradient_checkpointing_enable to activation_checkpointing_enable; the old name warns.
        kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        if not on:
            getattr(model, f"{kind}_checkpointing_disable")()
            return
        # The re-entrant form needs inputs that require gradient, and those of a frozen encoder do not.
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        if model.main_input_name == "input_ids":
            # For text, transformers makes them require it all the same: backward would run through frozen layers.
            model.disable_input_require_grads()
        for layer in self.stack:
            if any(parameter.requires_grad for parameter in layer.parameters()):
                break
            cast(Any, layer).gradient_checkpointing = False

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The encoder's own parameters, without those of adapters: what full fine-tuning trains."""
        return [parameter for name, parameter in self.model.named_parameters() if ".lora_" not in name]

    def base_weights(self) -> dict[str, Tensor]:
        """The weights that the embedding depends on, adapters left out, named as without adapters."""
        tail = {f"tail.{name}": tensor for name, tensor in self.tail.state_dict().items()}
        return base_state(self.model) | tail

    def digest(self) -> str:
        """`weights_digest` of `base_weights`; differs from `checkpoint_digest` once the encoder was trained."""
        return weights_digest(self.base_weights())


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights without those of LoRA, under the names they had before LoRA wrapped them."""
    return {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }


def backbone_class(name: str) -> type[Backbone]:
    """Return the class of a backbone by its name.

    Raises:
        ValueError: there is no backbone of that name.
    """
    if name not in _BACKBONES:
        raise ValueError(f"backbone {name!r} is unknown; expected one of {', '.join(BACKBONES)}")
    module, attribute = _BACKBONES[name]
    found: type[Backbone] = getattr(importlib.import_module(module), attribute)
    return found


def load_backbone(
    name: str,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    frames: int | None = None,
    size: int | Sequence[int] | None = None,
    **overrides: Any,
) -> Backbone:
    """Load a backbone: frozen, in eval mode, in float32, on the CPU.

    Args:
        name: `vjepa2`, `vjepa21`, `timesformer`, `videomae`, `clip` or `text`.
        checkpoint: a hub id, a folder written by transformers' (for text: sentence-transformers') `save_pretrained`,
            `tiny` for a small configuration with random weights, or None for the published default. A file of
            weights with a classification head, a decoder or a text tower loads as well: they are left behind.
        seed: seed of the random weights of `tiny`; torch's own random state is left as it was.
        frames: frames per clip; None takes what the checkpoint was trained with.
        size: pixels per side of a frame, or height and width; None takes what the checkpoint was trained with.
        overrides: fields of the model's configuration to set, for `tiny` only.

    Raises:
        ValueError: unknown name, another architecture's checkpoint, weights missing, or a number of frames or a size
            that the backbone cannot take.
        FileNotFoundError: the checkpoint is neither a folder nor a reachable hub id.
    """
    cls = backbone_class(name)
    if overrides and checkpoint != TINY:
        raise ValueError(
            f"{', '.join(overrides)}: configuration fields are for checkpoint {TINY!r}, not {checkpoint!r}"
        )
    if checkpoint == TINY:
        backbone = cls.from_tiny(seed, overrides, frames=frames)
    else:
        named = cls.default_checkpoint() if checkpoint is None else resolve_checkpoint(name, checkpoint)
        backbone = cls.from_checkpoint(named, frames=frames)
    if size is not None:
        backbone.set_size(size)
    return backbone
