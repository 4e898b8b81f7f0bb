"""How many clips go through an encoder at a time: as many as a budget of tokens allows."""

from __future__ import annotations

import torch

from bgs.models.backbone import Backbone

CPU_TOKENS = 8_192
"""Budget on a CPU, where larger batches are no faster: one clip of 64 frames and 256 pixels a side for V-JEPA 2."""

CUDA_TOKENS = 65_536
"""Largest budget on a GPU that is not asked for: products of that many rows keep any of them busy."""

BYTES_PER_UNIT = 96
"""What a token of width 1 is reckoned to occupy in a forward pass without gradients: some 24 activations of float32
beside each other. An estimate."""

SHARE = 0.5
"""Share of a GPU's memory that a batch may take by that estimate."""

CAPTIONED_CLIPS = 128
"""Clips in a batch of captions, which the text backbone divides further by itself."""


def default_tokens(backbone: Backbone) -> int:
    """Choose a budget by the device that a backbone is on and by its width.

    It goes by the memory that a GPU has and not by what is free at the moment: the same machine gives the same batches.
    """
    if backbone.device.type != "cuda":
        return CPU_TOKENS
    total = torch.cuda.get_device_properties(backbone.device).total_memory
    return min(CUDA_TOKENS, int(SHARE * total) // (BYTES_PER_UNIT * backbone.dim))


def clips_per_batch(backbone: Backbone, tokens: int | None = None) -> int:
    """Compute how many clips a batch may hold.

    Args:
        backbone: on its device.
        tokens: the budget; None for `default_tokens`.

    Returns:
        at least 1, however small the budget.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens: {tokens}; expected at least 1")
    one = backbone.tokens_per_clip
    if one is None:
        return CAPTIONED_CLIPS
    return max(1, (default_tokens(backbone) if tokens is None else tokens) // one)
