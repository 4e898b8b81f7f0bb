"""What makes one V-JEPA 2.1 encoder differ from another, and the four sizes that were published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from transformers import PreTrainedConfig

PRESETS: dict[str, dict[str, Any]] = {
    "vitb": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, mlp_ratio=4.0),
    "vitl": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, mlp_ratio=4.0),
    "vitg": dict(hidden_size=1408, num_hidden_layers=40, num_attention_heads=22, mlp_ratio=48 / 11),
    "vitG": dict(hidden_size=1664, num_hidden_layers=48, num_attention_heads=26, mlp_ratio=64 / 13),
}
"""The published sizes, of 80 million, 300 million, 1 billion and 2 billion parameters."""

# By depth, as published: the layers whose outputs were trained to be read. Only the deepest is not cut in quarters.
_OUT_LAYERS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39), 48: (11, 23, 37, 47)}


def published_out_layers(depth: int) -> list[int]:
    """Return the blocks read out of an encoder of this depth: the published ones, else the ends of its quarters."""
    quarters = sorted({max(-(-depth * part // 4) - 1, 0) for part in (1, 2, 3, 4)})
    return list(_OUT_LAYERS.get(depth, quarters))


class VJEPA21Config(PreTrainedConfig):
    """Configuration of a V-JEPA 2.1 encoder; the defaults are those of ViT-L.

    Args:
        hidden_size: width of a token.
        num_hidden_layers: number of blocks.
        num_attention_heads: heads of a block; a head is of even width, at least 6.
        mlp_ratio: width of the hidden layer of a block's MLP over `hidden_size`; their product is a whole number.
        patch_size: pixels per side of a patch.
        tubelet_size: frames that a token of a video spans; one of a single image spans 1.
        crop_size: pixels per side that the weights were trained for. It decides preprocessing alone: positions come
            from the input itself.
        frames_per_clip: frames of a clip unless another number is asked for; decides preprocessing alone. 16 is what
            Meta's pretraining took (`pretrain-256px-16f`), before a last phase of 64, a sequence four times as long.
        in_chans: channels of a pixel.
        layer_norm_eps: epsilon of every norm.
        hidden_act: activation of the MLPs, "gelu" being the exact one.
        attention_dropout: dropout of attention weights in training.
        initializer_range: standard deviation of fresh weights.
        out_layers: zero-based blocks whose outputs pass through a norm of their own (`norms_block`) and make up the
            hierarchical output, ascending; the last is the last block. None for `published_out_layers`.
        rope_extent: positions of rows and columns run from 0 to this number whatever the grid; it is the grid of
            pretraining, 16 patches a side, less one.

    Raises:
        ValueError: heads do not divide the width or are odd, the MLP has no whole width, the crop does not divide into
            patches or the clip into tubelets, or `out_layers` are not ascending blocks of which the last is the last.
    """

    model_type = "vjepa21"

    def __init__(
        self,
        *,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        tubelet_size: int = 2,
        crop_size: int = 384,
        frames_per_clip: int = 16,
        in_chans: int = 3,
        layer_norm_eps: float = 1e-6,
        hidden_act: str = "gelu",
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        out_layers: Sequence[int] | None = None,
        rope_extent: float = 15.0,
        **kwargs: Any,
    ):
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.mlp_ratio = mlp_ratio
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.crop_size = crop_size
        self.frames_per_clip = frames_per_clip
        self.in_chans = in_chans
        self.layer_norm_eps = layer_norm_eps
        self.hidden_act = hidden_act
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.out_layers = published_out_layers(num_hidden_layers) if out_layers is None else list(out_layers)
        self.rope_extent = rope_extent
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: {self.num_attention_heads} do not divide the width {self.hidden_size}"
            )
        if self.head_dim % 2 or self.head_dim < 6:
            raise ValueError(
                f"num_attention_heads: {self.num_attention_heads} of width {self.head_dim}; expected an even width of "
                "at least 6, two for each axis"
            )
        # Not int(): 48 / 11 is no binary fraction, and a product just below the whole number would lose a column.
        if abs(self.intermediate_size - self.hidden_size * self.mlp_ratio) > 1e-6 * self.intermediate_size:
            raise ValueError(f"mlp_ratio: {self.mlp_ratio} of a width {self.hidden_size} is not a whole number")
        if self.crop_size % self.patch_size:
            raise ValueError(f"crop_size: {self.crop_size} does not divide into patches of {self.patch_size}")
        if self.frames_per_clip != 1 and self.frames_per_clip % self.tubelet_size:
            raise ValueError(
                f"frames_per_clip: {self.frames_per_clip}; expected 1 or a multiple of the tubelet size "
                f"{self.tubelet_size}"
            )
        ascending = all(first < second for first, second in zip(self.out_layers, self.out_layers[1:], strict=False))
        if not self.out_layers or self.out_layers[0] < 0 or not ascending or self.out_layers[-1] != self.depth - 1:
            raise ValueError(
                f"out_layers: {self.out_layers}; expected ascending blocks of {self.depth}, the last of them "
                f"{self.depth - 1}"
            )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.num_hidden_layers

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def intermediate_size(self) -> int:
        """Width of the hidden layer of a block's MLP."""
        return round(self.hidden_size * self.mlp_ratio)

    @classmethod
    def preset(cls, size: str, **overrides: Any) -> Self:
        """Return the configuration of a published size.

        Args:
            size: `vitb`, `vitl`, `vitg` or `vitG`.
            overrides: fields to set to something else.

        Raises:
            ValueError: there is no such size.
        """
        if size not in PRESETS:
            raise ValueError(f"size: {size!r}; expected one of {', '.join(PRESETS)}")
        return cls(**PRESETS[size] | overrides)
