"""Meta's own V-JEPA checkpoints (.pt), down to one encoder's weights by their plain names and to the sizes that their
shapes tell. They are read as data: nothing inside a file is run, and tensors stay on disk until they are used.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENCODER_KEYS = ("ema_encoder", "target_encoder")
"""Where a checkpoint keeps the encoder that is meant to be used, the first that is there: the moving average of the
trained one. A distilled model's file calls its own `ema_encoder`."""

_PREFIXES = re.compile(r"(?:module\.|backbone\.)+")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class Original:
    """An encoder inside a checkpoint.

    Attributes:
        file: the checkpoint.
        key: where in it the encoder was; None if the file holds nothing else.
        others: what the file holds beside it.
        weights: by name, without the prefixes of the wrappers it was trained in.
    """

    file: Path
    key: str | None
    others: tuple[str, ...]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of an encoder's weights tell.

    Attributes:
        hidden_size: width of a token.
        num_hidden_layers: number of blocks.
        mlp_ratio: width of the hidden layer of the MLPs over `hidden_size`.
        patch_size: pixels per side of a patch.
        tubelet_size: frames that a token spans.
        in_chans: channels of a pixel.
    """

    hidden_size: int
    num_hidden_layers: int
    mlp_ratio: float
    patch_size: int
    tubelet_size: int
    in_chans: int


def read_original(file: Path, key: str | None = None) -> Original:
    """Read one encoder of a checkpoint.

    Args:
        file: a .pt file.
        key: which encoder; None for the first of `ENCODER_KEYS`, or the file itself if it holds weights alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as weights alone, or holds no encoder under that key.
    """
    content = _load(file)
    if key is None:
        key = next((name for name in ENCODER_KEYS if name in content), None)
    if key is None and not all(isinstance(value, Tensor) for value in content.values()):
        expected = " or ".join(map(repr, ENCODER_KEYS))
        raise ValueError(f"{file}: no {expected}; it holds {', '.join(map(str, content))}: name one of them as the key")
    if key is not None and key not in content:
        raise ValueError(f"{file}: no {key!r}; it holds {', '.join(map(str, content))}")
    found = content if key is None else content[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file}: {key!r} is not a mapping of names to tensors")
    weights: dict[str, Tensor] = {}
    for name, tensor in found.items():
        prefix = _PREFIXES.match(name)
        plain = name[prefix.end() :] if prefix else name
        if plain in weights:
            raise ValueError(f"{file}: {plain!r} is there twice, once as {name!r}")
        weights[plain] = tensor
    others = () if key is None else tuple(str(name) for name in content if name != key)
    return Original(file, key, others, weights)


def sizes_of(original: Original) -> Sizes:
    """Work out an encoder's sizes from the shapes of its weights.

    Raises:
        ValueError: they are not those of a V-JEPA encoder.
    """
    weights = original.weights
    kernel = weights.get("patch_embed.proj.weight")
    blocks = [int(found[1]) for name in weights if (found := _BLOCK.match(name))]
    if kernel is None or kernel.ndim != 5 or not blocks:
        some = ", ".join(sorted(weights)[:5])
        raise ValueError(
            f"{original.file}: {original.key or 'it'} is no V-JEPA encoder; expected blocks.N and a "
            f"patch_embed.proj.weight (width, channels, frames, pixels, pixels), got {len(weights)} weights such as "
            f"{some}"
        )
    width, channels, frames, pixels, _ = kernel.shape
    # A block without an MLP is missing weights, which are named later.
    hidden = next((len(tensor) for name, tensor in weights.items() if name.endswith(".mlp.fc1.weight")), 4 * width)
    return Sizes(width, max(blocks) + 1, hidden / width, pixels, frames, channels)


def _load(file: Path) -> Mapping[Any, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "Unsupported" in line), lines[0]).strip()
        raise ValueError(f"{file}: cannot be read as PyTorch weights and nothing else ({reason})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: holds a {type(content).__name__}; expected a mapping of names to weights")
    return content
