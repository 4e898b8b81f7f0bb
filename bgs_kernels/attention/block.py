"""The attention half of a transformer layer as one function of the ops: norm, projections with their adapters,
rotation, attention, output projection, residual. It is no op of its own: no formula is here that an op does not hold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bgs_kernels.attention.api import attention
from bgs_kernels.attention.rope import Rope
from bgs_kernels.lora import Projection, lora_linear, lora_qkv


def lora_attention(
    x: torch.Tensor,
    query: Projection,
    key: Projection,
    value: Projection,
    output: Projection,
    *,
    heads: int,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    norm_eps: float = 1e-6,
    scale: float | None = None,
    rope: Rope | None = None,
    key_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Compute x + P_o(attention(P_q(n), P_k(n), P_v(n))), n = layer_norm(x): pre-norm self-attention with its residual.

    Every P is a frozen projection with its adapter, see ``lora_linear``. Gradients go to x, the norm, the adapters and
    to those biases that require one. In the forward pass of each op x, n, queries, keys, values and the attended values
    are all that is in memory: no matrix of scores, and no copy that rearranges heads before attention.

    Args:
        x: (B, N, K) float16, bfloat16, float32 or float64.
        query: the projection (C, K) to queries, C a multiple of ``heads``.
        key: likewise.
        value: likewise.
        output: the projection (K, C) of what was attended to.
        heads: among which the C columns are divided, in order.
        norm_weight: (K,), None for a norm without.
        norm_bias: likewise.
        norm_eps: added to the variance.
        scale: of the scores; 1 / sqrt(C / heads) by default.
        rope: turns queries and keys, see ``rope_table``.
        key_mask: (B, N) bool, True for the tokens that are attended to; all by default.
        dropout_p: probability in [0, 1) with which an entry is dropped from an adapter's input; each of the four
            projections draws its own mask.
        seed: (4,) int64 on x's device, for query, key, value and output, see ``lora_linear``.
        backend: "auto", "triton" or "reference", of every op.

    Returns:
        (B, N, K) of x's dtype; under autocast, as of a norm and a sum under autocast, float32.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype, shape, device, number or backend is not one of those.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 3:
        raise ValueError(f"x: expected shape (B, N, K), got {tuple(x.shape)}")
    columns = query.weight.shape[0]
    if heads < 1 or columns % heads:
        raise ValueError(f"heads: expected a divisor of the {columns} columns of queries, got {heads}")
    if seed is not None and (seed.dtype != torch.int64 or seed.shape != (4,)):
        raise ValueError(f"seed: expected shape (4,) int64, got {tuple(seed.shape)} {seed.dtype}")
    normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, norm_eps)
    qkv_seed, output_seed = (None, None) if seed is None else (seed[:3], seed[3:])
    projected = lora_qkv(normed, query, key, value, dropout_p=dropout_p, seed=qkv_seed, backend=backend)
    attended = attend(*projected, heads=heads, scale=scale, rope=rope, key_mask=key_mask, backend=backend)
    result: torch.Tensor = x + lora_linear(
        attended,
        output.weight,
        output.bias,
        output.lora_A,
        output.lora_B,
        scaling=output.scaling,
        dropout_p=dropout_p,
        seed=output_seed,
        backend=backend,
    )
    return result


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    heads: int,
    scale: float | None = None,
    rope: Rope | None = None,
    key_mask: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Compute multi-head attention of projected tokens: heads are views of their columns.

    Args:
        query: (B, N, C), any strides.
        key: (B, M, C).
        value: (B, M, C).
        heads: divides C.
        scale: as ``attention``.
        rope: as ``attention``.
        key_mask: as ``attention``.
        backend: as ``attention``.

    Returns:
        (B, N, C).
    """
    split = (rows.view(*rows.shape[:-1], heads, -1).transpose(1, 2) for rows in (query, key, value))
    attended: torch.Tensor = attention(*split, scale=scale, rope=rope, key_mask=key_mask, backend=backend)
    return attended.transpose(1, 2).flatten(2)
