"""Attention and rotary embedding in plain PyTorch: the definition that every other backend is tested against."""

from __future__ import annotations

import torch

from bgs_kernels.attention.rope import rotate


def rope_3d(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn queries or keys (B, H, N, D) by a table (N, D), see ``bgs_kernels.attention.rope.Rope``."""
    return rotate(x, cos, sin)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    key_mask: torch.Tensor | None = None,
    *,
    scale: float,
    return_lse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute softmax(scale * q k^T) v over the keys that take part.

    Products are in the inputs' dtype, scores and the softmax in float32 (float64 for float64). A query without any key
    gives 0, passes no gradient on, and its log-sum-exp is -inf.

    Args:
        query: (B, H, N, D).
        key: (B, H, M, D).
        value: (B, H, M, D).
        cos: (N, D), with sin: queries and keys are turned first; then M = N.
        sin: (N, D).
        key_mask: (B, M) bool, True for the keys that take part.
        scale: of the scores.
        return_lse: whether the second result is wanted.

    Returns:
        (B, H, N, D) in the query's dtype, and the log-sum-exp (B, H, N) of the scores, or None.
    """
    if cos is not None and sin is not None:
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    scores = (query @ key.mT * scale).to(torch.promote_types(query.dtype, torch.float32))
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], -torch.inf)
        none = ~key_mask.any(-1)[:, None, None, None]
        share = torch.softmax(scores.masked_fill(none, 0.0), -1).masked_fill(none, 0.0)
    else:
        share = torch.softmax(scores, -1)
    lse = torch.logsumexp(scores, -1) if return_lse else None
    return share.to(value.dtype) @ value, lse
