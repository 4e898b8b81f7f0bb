"""The Triton kernels of attention over a few rows: a program holds all queries, keys and values of several heads, a
warp each, so that nothing is summed up along the way and the backward needs nothing of the forward.

Blocks are (heads, rows, columns): a product is one of every head, and what is not finite in one stays in it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bgs_kernels.attention.kernels import LN_2, LOG2_E
from bgs_kernels.pairwise.kernels import product, rounded


@triton.jit
def load_sets(
    p_x,
    i_b,
    i_h,
    o_rows,
    m_rows,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
):
    """Load the rows of several heads, (heads, rows, BD), 0 outside the mask (heads, rows, 1) and beyond D."""
    o_d = tl.arange(0, BD)
    p_block = p_x + ((i_b * stride_b + i_h * stride_h) * UNIT)[:, None, None]
    p_block += (o_rows * stride_n * UNIT)[None, :, None] + (o_d.to(tl.int64) * stride_d)[None, None, :]
    return tl.load(p_block, mask=m_rows & (o_d < D)[None, None, :], other=0.0)


@triton.jit
def store_sets(p_x, i_b, i_h, H, N, o_rows, m_rows, b_x, D: tl.constexpr, BD: tl.constexpr):
    """Store the rows of several heads, (heads, rows, BD), as (B, N, H, D)."""
    o_d = tl.arange(0, BD)
    o_block = ((i_b * N)[:, None, None] + o_rows[None, :, None]) * (H * D)
    o_block += (i_h * D)[:, None, None] + o_d[None, None, :]
    tl.store(p_x + o_block, rounded(b_x, p_x.dtype.element_ty), mask=m_rows & (o_d < D)[None, None, :])


@triton.jit
def products_of_sets(b_a, b_b, PRECISION: tl.constexpr):
    """Multiply the rows a with the rows b of every head."""
    b_zero = tl.zeros((b_a.shape[0], b_a.shape[1], b_b.shape[1]), tl.float32)
    return product(b_a, tl.permute(b_b, (0, 2, 1)), b_zero, PRECISION)


@triton.jit
def sum_of_sets(b_weights, b_x, PRECISION: tl.constexpr):
    """Add the rows x of every head, weighted by (heads, rows of the result, rows x), rounded to their dtype."""
    b_zero = tl.zeros((b_weights.shape[0], b_weights.shape[1], b_x.shape[2]), tl.float32)
    return product(rounded(b_weights, b_x.dtype), b_x, b_zero, PRECISION)


@triton.jit
def shares_of_sets(b_q, b_k, p_mask, i_b, o_rows, m_pair, M, scale, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr):
    """Compute the probabilities (heads, queries, keys) before they are divided by their sums, which are 1 for a query
    without any key, and the largest scores as exponents of 2."""
    m_keys = m_pair[:, None] & (o_rows < M)[None, :]
    if HAS_MASK:
        m_keys = tl.load(p_mask + (i_b * M)[:, None] + o_rows[None, :], mask=m_keys, other=0) != 0
    b_s = products_of_sets(b_q, b_k, PRECISION) * (scale * LOG2_E)
    b_s = tl.where(m_keys[:, None, :], b_s, -float("inf"))
    b_top = tl.max(b_s, 2)
    b_p = tl.exp2(b_s - tl.where(b_top == -float("inf"), 0.0, b_top)[:, :, None])
    m_any = tl.max(m_keys.to(tl.int32), 1) != 0
    return b_p, tl.where(m_any[:, None], tl.sum(b_p, 2), 1.0), b_top


@triton.jit
def small_fwd_kernel(
    p_q,
    p_k,
    p_v,
    p_mask,
    p_out,
    p_lse,
    B,
    H,
    N,
    M,
    scale,
    stride_q_b,
    stride_q_h,
    stride_q_n,
    stride_q_d,
    stride_k_b,
    stride_k_h,
    stride_k_m,
    stride_k_d,
    stride_v_b,
    stride_v_h,
    stride_v_m,
    stride_v_d,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BH: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
):
    """Compute the outputs and log-sum-exps of BH heads with up to BM queries and keys each."""
    i_pair = tl.program_id(0).to(tl.int64) * BH + tl.arange(0, BH)
    i_b = i_pair // H
    i_h = i_pair % H
    o_rows = tl.arange(0, BM).to(tl.int64)
    m_pair = i_b < B
    m_n = m_pair[:, None, None] & (o_rows < N)[None, :, None]
    m_m = m_pair[:, None, None] & (o_rows < M)[None, :, None]
    b_q = load_sets(p_q, i_b, i_h, o_rows, m_n, stride_q_b, stride_q_h, stride_q_n, stride_q_d, UNIT, D, BD)
    b_k = load_sets(p_k, i_b, i_h, o_rows, m_m, stride_k_b, stride_k_h, stride_k_m, stride_k_d, UNIT, D, BD)
    b_v = load_sets(p_v, i_b, i_h, o_rows, m_m, stride_v_b, stride_v_h, stride_v_m, stride_v_d, UNIT, D, BD)
    b_p, b_sum, b_top = shares_of_sets(b_q, b_k, p_mask, i_b, o_rows, m_pair, M, scale, HAS_MASK, PRECISION)
    o_lse = (i_pair * N)[:, None] + o_rows[None, :]
    tl.store(p_lse + o_lse, b_top * LN_2 + tl.log(b_sum), mask=m_pair[:, None] & (o_rows < N)[None, :])
    b_out = sum_of_sets(b_p, b_v, PRECISION) / b_sum[:, :, None]
    store_sets(p_out, i_b, i_h, H, N, o_rows, m_n, b_out, D, BD)


@triton.jit
def small_bwd_kernel(
    p_q,
    p_k,
    p_v,
    p_mask,
    p_do,
    p_dq,
    p_dk,
    p_dv,
    B,
    H,
    N,
    M,
    scale,
    stride_q_b,
    stride_q_h,
    stride_q_n,
    stride_q_d,
    stride_k_b,
    stride_k_h,
    stride_k_m,
    stride_k_d,
    stride_v_b,
    stride_v_h,
    stride_v_m,
    stride_v_d,
    stride_do_b,
    stride_do_h,
    stride_do_n,
    stride_do_d,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BH: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
):
    """Compute the gradients of BH heads with up to BM queries and keys each, from nothing but what the forward was
    given."""
    i_pair = tl.program_id(0).to(tl.int64) * BH + tl.arange(0, BH)
    i_b = i_pair // H
    i_h = i_pair % H
    o_rows = tl.arange(0, BM).to(tl.int64)
    m_pair = i_b < B
    m_n = m_pair[:, None, None] & (o_rows < N)[None, :, None]
    m_m = m_pair[:, None, None] & (o_rows < M)[None, :, None]
    b_q = load_sets(p_q, i_b, i_h, o_rows, m_n, stride_q_b, stride_q_h, stride_q_n, stride_q_d, UNIT, D, BD)
    b_k = load_sets(p_k, i_b, i_h, o_rows, m_m, stride_k_b, stride_k_h, stride_k_m, stride_k_d, UNIT, D, BD)
    b_v = load_sets(p_v, i_b, i_h, o_rows, m_m, stride_v_b, stride_v_h, stride_v_m, stride_v_d, UNIT, D, BD)
    b_do = load_sets(p_do, i_b, i_h, o_rows, m_n, stride_do_b, stride_do_h, stride_do_n, stride_do_d, UNIT, D, BD)
    b_p, b_sum, _ = shares_of_sets(b_q, b_k, p_mask, i_b, o_rows, m_pair, M, scale, HAS_MASK, PRECISION)
    b_p = b_p / b_sum[:, :, None]
    b_dp = products_of_sets(b_do, b_v, PRECISION)
    b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, 2)[:, :, None])
    b_dv = sum_of_sets(tl.permute(b_p, (0, 2, 1)), b_do, PRECISION)
    b_dq = sum_of_sets(b_ds, b_k, PRECISION) * scale
    b_dk = sum_of_sets(tl.permute(b_ds, (0, 2, 1)), b_q, PRECISION) * scale
    store_sets(p_dq, i_b, i_h, H, N, o_rows, m_n, b_dq, D, BD)
    store_sets(p_dk, i_b, i_h, H, M, o_rows, m_m, b_dk, D, BD)
    store_sets(p_dv, i_b, i_h, H, M, o_rows, m_m, b_dv, D, BD)
