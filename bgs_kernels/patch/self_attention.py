"""What the fused forms of self-attention modules share: what stands against them, whatever the model."""

from __future__ import annotations

from typing import Any

from bgs_kernels.patch.families import Fused


class FusedSelfAttention(Fused):
    """A self-attention module of a model that has a transformers configuration as ``config``."""

    config: Any

    def obstacle(self, dropout_p: float, *args: object, **kwargs: object) -> str | None:
        """Say why attention cannot be computed without its weights in memory, or None.

        Args:
            dropout_p: probability with which the module drops a weight in training.
            args: what the module was called with besides its input.
            kwargs: likewise, by name.
        """
        if self.training and dropout_p > 0:
            return "attention weights are dropped out"
        if self.config._attn_implementation in (None, "eager"):
            return "attn_implementation is 'eager', which returns attention weights"
        if kwargs.get("output_attentions") or True in args:
            return "attention weights are asked for"
        return None
