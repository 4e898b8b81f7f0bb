"""V-JEPA 2.1's encoder as a transformers model.

The weights have the names that Meta's checkpoints give them (`blocks.N.attn.qkv`, `norms_block.N`, ...), less the
prefixes `module.` and `backbone.`: whoever knows the one layout knows the other, and converting is a check of names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import ModelOutput, can_return_tuple

from bgs.models.vjepa21.configuration import VJEPA21Config
from bgs_kernels import Rope, rope_3d, rope_table

# Of the two modality embeddings before training: next to nothing, as in Meta's code.
_MODALITY_INIT = 1e-6


@dataclass
class VJEPA21Output(ModelOutput):
    """What the encoder gives; N is tokens by time x height x width, in that order.

    Attributes:
        last_hidden_state: (B, N, hidden_size), the last block's output after the last norm of `norms_block`.
        hierarchical: (B, N, hidden_size * len(out_layers)) on request: the outputs of the blocks `out_layers`, each
            after its own norm, concatenated.
        hidden_states: on request, num_hidden_layers + 1 tensors (B, N, hidden_size), none of them normed: the
            embedded patches and what each block makes of them.
        attentions: on request, num_hidden_layers tensors (B, heads, N, N); eager attention only.
    """

    last_hidden_state: Tensor | None = None
    hierarchical: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute attention with its weights in memory; takes and gives what transformers' attention functions do.

    Args:
        module: the attention layer.
        query: (B, heads, N, head_dim).
        key: likewise.
        value: likewise.
        attention_mask: added to the scores, or None.
        scaling: of the scores.
        dropout: probability with which a weight is dropped.
        kwargs: not used.

    Returns:
        (B, N, heads, head_dim), and the weights (B, heads, N, N).
    """
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class VJEPA21PatchEmbedding(nn.Module):
    """Pixels to tokens: each tubelet of `tubelet_size` frames by `patch_size` x `patch_size` pixels becomes one."""

    def __init__(self, config: VJEPA21Config, tubelet_size: int):
        super().__init__()
        kernel = (tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.hidden_size, kernel_size=kernel, stride=kernel)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed pixels (B, channels, T, H, W) as tokens (B, N, hidden_size)."""
        tokens: Tensor = self.proj(pixels)
        return tokens.flatten(2).transpose(1, 2)


class VJEPA21Attention(nn.Module):
    """Multi-head self-attention whose queries and keys are turned by their tokens' positions."""

    def __init__(self, config: VJEPA21Config):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
        """Let tokens attend to one another.

        Args:
            hidden_states: (B, N, hidden_size).
            cos: (N, head_dim), see `bgs_kernels.Rope`.
            sin: likewise.

        Returns:
            (B, N, hidden_size), and the weights (B, heads, N, N) where the attention function gives them.
        """
        batch, tokens, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, tokens, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        attended, weights = attend(
            self,
            rope_3d(query, cos, sin),
            rope_3d(key, cos, sin),
            value,
            None,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            is_causal=self.is_causal,
        )
        return self.proj(attended.reshape(batch, tokens, width)), weights


class VJEPA21MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: VJEPA21Config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, N, hidden_size) to the same shape, each token by itself."""
        result: Tensor = self.fc2(self.activation(self.fc1(hidden_states)))
        return result


class VJEPA21Block(GradientCheckpointingLayer):
    """Attention, then the MLP, each on normed tokens and added to what came in."""

    def __init__(self, config: VJEPA21Config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = VJEPA21Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VJEPA21MLP(config)

    def forward(self, hidden_states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take tokens (B, N, hidden_size) one layer on; arguments and results as `VJEPA21Attention.forward`."""
        attended, weights = self.attn(self.norm1(hidden_states), cos, sin)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.norm2(hidden_states)), weights


class VJEPA21Model(PreTrainedModel):
    """V-JEPA 2.1's encoder (Meta, 2026); against V-JEPA 2 (Assran et al., 2025, arXiv 2506.09985) see docs/vjepa21.md.

    Args:
        config: see `VJEPA21Config`.
    """

    config_class = VJEPA21Config
    config: VJEPA21Config
    base_model_prefix = "vjepa21"
    main_input_name = "pixel_values_videos"
    input_modalities = "video"
    supports_gradient_checkpointing = True
    _no_split_modules = ["VJEPA21Block"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: VJEPA21Config):
        super().__init__(config)
        self.patch_embed = VJEPA21PatchEmbedding(config, config.tubelet_size)
        self.patch_embed_img = VJEPA21PatchEmbedding(config, 1)
        self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.blocks = nn.ModuleList(VJEPA21Block(config) for _ in range(config.num_hidden_layers))
        self.norms_block = nn.ModuleList(
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in config.out_layers
        )
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that makes tokens of videos."""
        return self.patch_embed

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: Tensor,
        output_hierarchical: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> VJEPA21Output:
        """Encode clips; a clip of one frame goes through the path for images.

        Args:
            pixel_values_videos: (B, T, channels, H, W), normalised. T is 1 or a multiple of `tubelet_size`, H and W
                are multiples of `patch_size`; other than that, any size.
            output_hierarchical: whether to return what the blocks `out_layers` give.
            output_hidden_states: whether to return every block's output; None for the configuration's choice.
            output_attentions: whether to return the attention weights; None for the configuration's choice.
            kwargs: `return_dict=False` gives a tuple of what is there.

        Returns:
            See `VJEPA21Output`.

        Raises:
            ValueError: the pixels are of another shape, or the attention in use gives no weights.
        """
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        keep_weights = self.config.output_attentions if output_attentions is None else output_attentions
        if keep_weights and self.config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions: attention {self.config._attn_implementation!r} gives no weights; load the model "
                'with attn_implementation="eager"'
            )
        hidden_states, rope = self.embed(pixel_values_videos)
        states: list[Tensor] = [hidden_states]
        weights: list[Tensor] = []
        read_out: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            hidden_states, attention = block(hidden_states, rope.cos, rope.sin)
            if keep_states:
                states.append(hidden_states)
            if keep_weights:
                weights.append(attention)
            if output_hierarchical and index in self.config.out_layers:
                read_out.append(self.norms_block[len(read_out)](hidden_states))
        return VJEPA21Output(
            last_hidden_state=read_out[-1] if output_hierarchical else self.norms_block[-1](hidden_states),
            hierarchical=torch.cat(read_out, -1) if output_hierarchical else None,
            hidden_states=tuple(states) if keep_states else None,
            attentions=tuple(weights) if keep_weights else None,
        )

    def embed(self, pixel_values_videos: Tensor) -> tuple[Tensor, Rope]:
        """Make tokens of pixels, and the table by which all blocks turn their queries and keys.

        Args:
            pixel_values_videos: (B, T, channels, H, W), see `forward`.

        Returns:
            (B, N, hidden_size), and cosines and sines (N, head_dim) in float32, in float64 for a model of float64.
        """
        self._check_pixels(pixel_values_videos)
        frames, _, height, width = pixel_values_videos.shape[1:]
        image = frames == 1
        embedding = self.patch_embed_img if image else self.patch_embed
        tubelet = 1 if image else self.config.tubelet_size
        weights = embedding.proj.weight
        tokens = embedding(pixel_values_videos.transpose(1, 2).to(weights.dtype))
        rope = rope_table(
            (frames // tubelet, height // self.config.patch_size, width // self.config.patch_size),
            self.config.head_dim,
            form="true",
            spatial_extent=self.config.rope_extent,
            device=tokens.device,
            dtype=torch.promote_types(weights.dtype, torch.float32),
        )
        return tokens + (self.img_mod_embed if image else self.video_mod_embed), rope

    def _check_pixels(self, pixels: Tensor) -> None:
        channels, patch, tubelet = self.config.in_chans, self.config.patch_size, self.config.tubelet_size
        if pixels.ndim != 5 or pixels.shape[2] != channels:
            raise ValueError(f"pixel_values_videos: expected (B, T, {channels}, H, W), got {tuple(pixels.shape)}")
        frames, height, width = pixels.shape[1], pixels.shape[3], pixels.shape[4]
        if frames != 1 and (frames == 0 or frames % tubelet):
            raise ValueError(
                f"pixel_values_videos: {frames} frames; expected 1, an image, or a multiple of the tubelet size "
                f"{tubelet}"
            )
        if min(height, width) == 0 or height % patch or width % patch:
            raise ValueError(
                f"pixel_values_videos: {height}x{width} pixels (height x width); expected multiples of the patch size "
                f"{patch}"
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw a module's fresh weights, after those of the modules inside it."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv3d):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, VJEPA21Model):
            init.normal_(module.video_mod_embed, std=_MODALITY_INIT)
            init.normal_(module.img_mod_embed, std=_MODALITY_INIT)
            # What a block adds shrinks with depth, so that the sum over blocks does not grow. Not in the block's own
            # turn: transformers passes over modules that hold no weights themselves.
            blocks: Any = module.blocks
            for number, block in enumerate(blocks, 1):
                init.trunc_normal_(block.attn.proj.weight, std=std / (2 * number) ** 0.5)
                init.trunc_normal_(block.mlp.fc2.weight, std=std / (2 * number) ** 0.5)
