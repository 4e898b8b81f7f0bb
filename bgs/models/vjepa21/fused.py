"""The form in which `bgs_kernels.accelerate` runs V-JEPA 2.1's attention: queries and keys are turned inside it."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from bgs_kernels import Rope
from bgs_kernels.attention import attend
from bgs_kernels.patch import FusedSelfAttention


class FusedVJEPA21Attention(FusedSelfAttention):
    """`VJEPA21Attention` by the op `attention`; its one layer for queries, keys and values is called as it is."""

    kind = "attention of V-JEPA 2.1"
    qkv: nn.Module
    proj: nn.Module
    num_heads: int
    scaling: float
    attention_dropout: float

    def forward(self, hidden_states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
        """Let tokens attend to one another; arguments and results as `VJEPA21Attention.forward`, without weights."""
        if (reason := self.obstacle(self.attention_dropout)) is not None:
            self.fall_back(reason)
            plain: Any = super().forward(hidden_states, cos, sin)
            return cast("tuple[Tensor, Tensor | None]", plain)
        query, key, value = self.qkv(hidden_states).chunk(3, -1)
        attended = attend(query, key, value, heads=self.num_heads, scale=self.scaling, rope=Rope(cos, sin))
        return self.proj(attended), None
