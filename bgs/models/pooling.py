"""How the tokens of a clip become one vector: the choices, and the attentive probe that is trained with the head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["default", "mean", "cls", "attentive"]

# Width of an attention head of the probe, as in the encoders it reads.
_HEAD_WIDTH = 64
# Spread of the query at the start, as in V-JEPA's probe: attention is nearly uniform.
_QUERY_INIT = 0.02


class AttentivePooling(nn.Module):
    """One learned query that attends to the tokens (the attentive probe of V-JEPA, Bardes et al., 2024).

    softmax(q K^T / sqrt(d)) V over normalised tokens, in heads of 64 where these divide the width, otherwise in one.
    V-JEPA's probe goes on with a residual MLP; here the embedder's head follows. The values start as the normalised
    tokens themselves and the weights nearly equal, so that training sets out from the mean of the tokens.

    Args:
        dim: width C of a token.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.heads = dim // _HEAD_WIDTH if dim % _HEAD_WIDTH == 0 else 1
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim), std=_QUERY_INIT))
        # Without bias: added to every key, one would move all scores alike.
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        nn.init.eye_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens (B, N, C) into (B, C)."""
        tokens = self.norm(tokens)
        query = self.query.expand(len(tokens), 1, -1)
        split = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, self.key(tokens), self.value(tokens))
        )
        return nn.functional.scaled_dot_product_attention(*split).flatten(1)
