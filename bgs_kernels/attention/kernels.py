"""The Triton kernels of attention over many rows, forward and backward, and of the turning of rows by a table of
cosines and sines. Heads of a few rows have their own, in ``small_kernels``.

A head is one block of columns or two (D1, and D2 beside it or 0): 80 columns are 64 and 16, where a block of 128 would
multiply by zero three times in eight. A probability is exp2(s * c - top) of a score s, with c = scale * log2(e), which
is one multiplication and addition and one exponential. Strides come in UNITs of entries, so that the compiler knows
of what they are multiples and loads 16 bytes at a time.

Prefixes: p_ pointer, b_ block in registers, o_ offsets, m_ mask, i_ what a program is for, n_ number.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bgs_kernels.pairwise.kernels import product, rounded

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(
    p_x, o_rows, stride_d, m_rows, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, WHOLE: tl.constexpr
):
    """Load columns FIRST and on of rows, (rows, WIDTH), 0 beyond D and, unless they are WHOLE, outside the mask."""
    o_d = FIRST + tl.arange(0, WIDTH).to(tl.int64)
    p_block = p_x + o_rows[:, None] + (o_d * stride_d)[None, :]
    if FIRST + WIDTH <= D:
        if WHOLE:
            return tl.load(p_block)
        else:
            return tl.load(p_block, mask=m_rows[:, None], other=0.0)
    else:
        if WHOLE:
            return tl.load(p_block, mask=(o_d < D)[None, :], other=0.0)
        else:
            return tl.load(p_block, mask=m_rows[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def load_head(p_x, o_rows, stride_d, m_rows, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, WHOLE: tl.constexpr):
    """Load rows in their two blocks of columns; the second is the first where there is none."""
    b_1 = load_rows(p_x, o_rows, stride_d, m_rows, 0, D1, D, WHOLE)
    b_2 = b_1
    if D2 > 0:
        b_2 = load_rows(p_x, o_rows, stride_d, m_rows, D1, D2, D, WHOLE)
    return b_1, b_2


@triton.jit
def store_rows(p_x, o_rows, m_rows, b_x, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Store columns FIRST and on of rows whose entries lie side by side, in the dtype of what is pointed to."""
    o_d = FIRST + tl.arange(0, WIDTH)
    m_block = m_rows[:, None]
    if FIRST + WIDTH > D:
        m_block = m_block & (o_d < D)[None, :]
    tl.store(p_x + o_rows[:, None] + o_d[None, :], rounded(b_x, p_x.dtype.element_ty), mask=m_block)


@triton.jit
def swapped(b_x):
    """Swap the entries of every pair (2m, 2m + 1) of columns and negate the one that comes first."""
    b_even, b_odd = tl.split(tl.reshape(b_x, (b_x.shape[0], b_x.shape[1] // 2, 2)))
    return tl.reshape(tl.join(-b_odd, b_even), b_x.shape)


@triton.jit
def turned(b_x, b_cos, b_sin, TRANSPOSED: tl.constexpr):
    """Turn rows by their part of a table, in float32; TRANSPOSED: by the transpose of its map, as a gradient is."""
    b_x = b_x.to(tl.float32)
    if TRANSPOSED:
        return b_x * b_cos - swapped(b_x * b_sin)
    else:
        return b_x * b_cos + swapped(b_x) * b_sin


@triton.jit
def turn_heads(
    p_x,
    p_turned,
    p_cos,
    p_sin,
    H,
    N,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    BH: tl.constexpr,
):
    n_blocks, n_groups = tl.cdiv(N, BM), tl.cdiv(H, BH)
    i_block = tl.program_id(0) % n_blocks
    i_group = tl.program_id(0) // n_blocks % n_groups
    i_b = (tl.program_id(0) // (n_blocks * n_groups)).to(tl.int64)
    o_n = (i_block * BM + tl.arange(0, BM)).to(tl.int64)
    m_n = o_n < N
    b_cos = load_rows(p_cos, o_n * D, 1, m_n, 0, BD, D, False)
    b_sin = load_rows(p_sin, o_n * D, 1, m_n, 0, BD, D, False)
    p_x += (i_b * stride_b + (i_group * BH).to(tl.int64) * stride_h) * UNIT
    p_turned += (i_b * N * H + i_group * BH) * D
    step = tl.full((), UNIT, tl.int64)
    for _ in range(i_group * BH, tl.minimum(i_group * BH + BH, H)):
        b_x = load_rows(p_x, o_n * stride_n * UNIT, stride_d, m_n, 0, BD, D, False)
        store_rows(p_turned, o_n * H * D, m_n, turned(b_x, b_cos, b_sin, TRANSPOSED), 0, BD, D)
        p_x += step * stride_h
        p_turned += D


@triton.jit
def rope_kernel(
    p_x,
    p_y,
    p_turned_x,
    p_turned_y,
    p_cos,
    p_sin,
    H,
    N,
    stride_x_b,
    stride_x_h,
    stride_x_n,
    stride_x_d,
    stride_y_b,
    stride_y_h,
    stride_y_n,
    stride_y_d,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    BH: tl.constexpr,
):
    """Turn BM rows of BH heads, whose part of the table is read once; the result is laid out as (B, N, H, D). Programs
    (p, 0) are for x and (p, 1), if there are any, for y."""
    if tl.program_id(1) == 0:
        turn_heads(
            p_x, p_turned_x, p_cos, p_sin, H, N, stride_x_b, stride_x_h, stride_x_n, stride_x_d,
            UNIT, D, TRANSPOSED, BM, BD, BH,
        )  # fmt: skip
    else:
        turn_heads(
            p_y, p_turned_y, p_cos, p_sin, H, N, stride_y_b, stride_y_h, stride_y_n, stride_y_d,
            UNIT, D, TRANSPOSED, BM, BD, BH,
        )  # fmt: skip


@triton.jit
def products(b_a1, b_a2, b_b1, b_b2, D2: tl.constexpr, PRECISION: tl.constexpr):
    """Multiply rows a with rows b, (rows a, rows b) float32."""
    b_products = tl.zeros((b_a1.shape[0], b_b1.shape[0]), tl.float32)
    b_products = product(b_a1, tl.trans(b_b1), b_products, PRECISION)
    if D2 > 0:
        b_products = product(b_a2, tl.trans(b_b2), b_products, PRECISION)
    return b_products


@triton.jit
def add_products(b_sum1, b_sum2, b_weights, b_x1, b_x2, D2: tl.constexpr, PRECISION: tl.constexpr):
    """Add rows x, weighted by b_weights (rows of the sums, rows x) rounded to their dtype, to two blocks of columns."""
    b_weights = rounded(b_weights, b_x1.dtype)
    b_sum1 = product(b_weights, b_x1, b_sum1, PRECISION)
    if D2 > 0:
        b_sum2 = product(b_weights, b_x2, b_sum2, PRECISION)
    return b_sum1, b_sum2


@triton.jit
def add_keys(
    b_top,
    b_sum,
    b_taking,
    b_out1,
    b_out2,
    b_q1,
    b_q2,
    p_k,
    p_v,
    p_mask,
    o_m,
    M,
    c,
    stride_k_m,
    stride_k_d,
    stride_v_m,
    stride_v_d,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    HAS_MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add a block of keys, the first M of o_m, to the running maxima, sums and outputs of a block of queries."""
    m_m = o_m < M
    b_k1, b_k2 = load_head(p_k, o_m * stride_k_m * UNIT, stride_k_d, m_m, D, D1, D2, WHOLE)
    b_s = products(b_q1, b_q2, b_k1, b_k2, D2, PRECISION)
    if HAS_MASK:
        b_mask = tl.load(p_mask + o_m, mask=m_m, other=0)
        b_taking = tl.maximum(b_taking, b_mask)
        b_s = tl.where((b_mask != 0)[None, :], b_s, -float("inf"))
    elif not WHOLE:
        b_s = tl.where(m_m[None, :], b_s, -float("inf"))
    b_new = tl.maximum(b_top, tl.max(b_s, 1) * c)
    b_shift = tl.where(b_new == -float("inf"), 0.0, b_new)  # rows that have no score above -inf yet
    b_p = tl.exp2(b_s * c - b_shift[:, None])
    b_less = tl.exp2(b_top - b_shift)
    b_sum = b_sum * b_less + tl.sum(b_p, 1)
    b_out1 = b_out1 * b_less[:, None]
    if D2 > 0:
        b_out2 = b_out2 * b_less[:, None]
    b_v1, b_v2 = load_head(p_v, o_m * stride_v_m * UNIT, stride_v_d, m_m, D, D1, D2, WHOLE)
    b_out1, b_out2 = add_products(b_out1, b_out2, b_p, b_v1, b_v2, D2, PRECISION)
    return b_new, b_sum, b_taking, b_out1, b_out2


@triton.jit
def attention_fwd_kernel(
    p_q,
    p_k,
    p_v,
    p_mask,
    p_out,
    p_lse,
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
    D1: tl.constexpr,
    D2: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Compute the outputs (B, N, H, D) and log-sum-exps (B, H, N) of a block of BM queries of one head."""
    n_blocks = tl.cdiv(N, BM)
    i_pair = tl.program_id(0) // n_blocks
    i_b = (i_pair // H).to(tl.int64)
    i_h = (i_pair % H).to(tl.int64)
    o_n = (tl.program_id(0) % n_blocks * BM + tl.arange(0, BM)).to(tl.int64)
    m_n = o_n < N
    c = scale * LOG2_E
    o_out = ((i_b * N + o_n) * H + i_h) * D
    b_q1, b_q2 = load_head(
        p_q + (i_b * stride_q_b + i_h * stride_q_h) * UNIT, o_n * stride_q_n * UNIT, stride_q_d, m_n, D, D1, D2, False
    )
    p_k += (i_b * stride_k_b + i_h * stride_k_h) * UNIT
    p_v += (i_b * stride_v_b + i_h * stride_v_h) * UNIT
    p_mask += i_b * M
    b_top = tl.full((BM,), -float("inf"), tl.float32)
    b_sum = tl.zeros((BM,), tl.float32)
    b_taking = tl.zeros((BN,), p_mask.dtype.element_ty) if HAS_MASK else 0
    b_out1 = tl.zeros((BM, D1), tl.float32)
    b_out2 = tl.zeros((BM, D2 if D2 > 0 else 16), tl.float32)
    o_m = tl.arange(0, BN).to(tl.int64)
    n_whole = M // BN * BN
    step = tl.full((), BN, tl.int64)
    for _ in range(0, n_whole, BN):
        b_top, b_sum, b_taking, b_out1, b_out2 = add_keys(
            b_top, b_sum, b_taking, b_out1, b_out2, b_q1, b_q2, p_k, p_v, p_mask, o_m, BN, c,
            stride_k_m, stride_k_d, stride_v_m, stride_v_d, UNIT, D, D1, D2, HAS_MASK, True, PRECISION,
        )  # fmt: skip
        p_k += step * stride_k_m * UNIT
        p_v += step * stride_v_m * UNIT
        p_mask += BN
    if n_whole < M:
        b_top, b_sum, b_taking, b_out1, b_out2 = add_keys(
            b_top, b_sum, b_taking, b_out1, b_out2, b_q1, b_q2, p_k, p_v, p_mask, o_m, M - n_whole, c,
            stride_k_m, stride_k_d, stride_v_m, stride_v_d, UNIT, D, D1, D2, HAS_MASK, False, PRECISION,
        )  # fmt: skip
    if HAS_MASK:
        b_sum = tl.where(tl.max(b_taking, 0) == 0, 1.0, b_sum)  # without any key the output is 0 and the maximum -inf
    tl.store(p_lse + i_pair.to(tl.int64) * N + o_n, b_top * LN_2 + tl.log(b_sum), mask=m_n)
    store_rows(p_out, o_out, m_n, b_out1 / b_sum[:, None], 0, D1, D)
    if D2 > 0:
        store_rows(p_out, o_out, m_n, b_out2 / b_sum[:, None], D1, D2, D)


@triton.jit
def add_keys_of_gradient(
    b_dq1,
    b_dq2,
    b_q1,
    b_q2,
    b_do1,
    b_do2,
    b_lse,
    b_delta,
    p_k,
    p_v,
    p_mask,
    o_m,
    M,
    c,
    stride_k_m,
    stride_k_d,
    stride_v_m,
    stride_v_d,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    HAS_MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add what a block of keys, the first M of o_m, gives to the gradient of a block of queries."""
    m_m = o_m < M
    b_k1, b_k2 = load_head(p_k, o_m * stride_k_m * UNIT, stride_k_d, m_m, D, D1, D2, WHOLE)
    b_p = tl.exp2(products(b_q1, b_q2, b_k1, b_k2, D2, PRECISION) * c - b_lse[:, None])
    if HAS_MASK:
        m_m = tl.load(p_mask + o_m, mask=m_m, other=0) != 0
        b_p = tl.where(m_m[None, :], b_p, 0.0)
    elif not WHOLE:
        b_p = tl.where(m_m[None, :], b_p, 0.0)
    b_v1, b_v2 = load_head(p_v, o_m * stride_v_m * UNIT, stride_v_d, o_m < M, D, D1, D2, WHOLE)
    b_ds = b_p * (products(b_do1, b_do2, b_v1, b_v2, D2, PRECISION) - b_delta[:, None])
    return add_products(b_dq1, b_dq2, b_ds, b_k1, b_k2, D2, PRECISION)


@triton.jit
def store_gradient(
    p_gradient,
    o_rows,
    m_rows,
    b_1,
    b_2,
    p_cos,
    p_sin,
    o_n,
    HAS_ROPE: tl.constexpr,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
):
    """Store the gradient of rows, turned back if the rows were turned by the rows o_n of the table."""
    if HAS_ROPE:
        b_cos1, b_cos2 = load_head(p_cos, o_n * D, 1, m_rows, D, D1, D2, False)
        b_sin1, b_sin2 = load_head(p_sin, o_n * D, 1, m_rows, D, D1, D2, False)
        b_1 = turned(b_1, b_cos1, b_sin1, True)
        if D2 > 0:
            b_2 = turned(b_2, b_cos2, b_sin2, True)
    store_rows(p_gradient, o_rows, m_rows, b_1, 0, D1, D)
    if D2 > 0:
        store_rows(p_gradient, o_rows, m_rows, b_2, D1, D2, D)


@triton.jit
def attention_bwd_queries_kernel(
    p_q,
    p_k,
    p_v,
    p_cos,
    p_sin,
    p_mask,
    p_out,
    p_do,
    p_lse,
    p_delta,
    p_dq,
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
    stride_out_b,
    stride_out_h,
    stride_out_n,
    stride_out_d,
    stride_do_b,
    stride_do_h,
    stride_do_n,
    stride_do_d,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    HAS_ROPE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Compute delta (B, H, N), the sums of the outputs times their gradient, and, WITH_GRADIENT, the gradient
    (B, N, H, D) of a block of BM queries of one head. Queries and keys are turned already."""
    n_blocks = tl.cdiv(N, BM)
    i_pair = tl.program_id(0) // n_blocks
    i_b = (i_pair // H).to(tl.int64)
    i_h = (i_pair % H).to(tl.int64)
    o_n = (tl.program_id(0) % n_blocks * BM + tl.arange(0, BM)).to(tl.int64)
    m_n = o_n < N
    b_do1, b_do2 = load_head(
        p_do + (i_b * stride_do_b + i_h * stride_do_h) * UNIT,
        o_n * stride_do_n * UNIT,
        stride_do_d,
        m_n,
        D,
        D1,
        D2,
        False,
    )
    b_out1, b_out2 = load_head(
        p_out + (i_b * stride_out_b + i_h * stride_out_h) * UNIT,
        o_n * stride_out_n * UNIT,
        stride_out_d,
        m_n,
        D,
        D1,
        D2,
        False,
    )
    b_delta = tl.sum(b_do1.to(tl.float32) * b_out1.to(tl.float32), 1)
    if D2 > 0:
        b_delta += tl.sum(b_do2.to(tl.float32) * b_out2.to(tl.float32), 1)
    tl.store(p_delta + i_pair.to(tl.int64) * N + o_n, b_delta, mask=m_n)
    if WITH_GRADIENT:
        c = scale * LOG2_E
        b_lse = tl.load(p_lse + i_pair.to(tl.int64) * N + o_n, mask=m_n, other=float("inf")) * LOG2_E
        b_q1, b_q2 = load_head(
            p_q + (i_b * stride_q_b + i_h * stride_q_h) * UNIT,
            o_n * stride_q_n * UNIT,
            stride_q_d,
            m_n,
            D,
            D1,
            D2,
            False,
        )
        p_k += (i_b * stride_k_b + i_h * stride_k_h) * UNIT
        p_v += (i_b * stride_v_b + i_h * stride_v_h) * UNIT
        p_mask += i_b * M
        b_dq1 = tl.zeros((BM, D1), tl.float32)
        b_dq2 = tl.zeros((BM, D2 if D2 > 0 else 16), tl.float32)
        o_m = tl.arange(0, BN).to(tl.int64)
        n_whole = M // BN * BN
        step = tl.full((), BN, tl.int64)
        for _ in range(0, n_whole, BN):
            b_dq1, b_dq2 = add_keys_of_gradient(
                b_dq1, b_dq2, b_q1, b_q2, b_do1, b_do2, b_lse, b_delta, p_k, p_v, p_mask, o_m, BN, c,
                stride_k_m, stride_k_d, stride_v_m, stride_v_d, UNIT, D, D1, D2, HAS_MASK, True, PRECISION,
            )  # fmt: skip
            p_k += step * stride_k_m * UNIT
            p_v += step * stride_v_m * UNIT
            p_mask += BN
        if n_whole < M:
            b_dq1, b_dq2 = add_keys_of_gradient(
                b_dq1, b_dq2, b_q1, b_q2, b_do1, b_do2, b_lse, b_delta, p_k, p_v, p_mask, o_m, M - n_whole, c,
                stride_k_m, stride_k_d, stride_v_m, stride_v_d, UNIT, D, D1, D2, HAS_MASK, False, PRECISION,
            )  # fmt: skip
        o_dq = ((i_b * N + o_n) * H + i_h) * D
        store_gradient(p_dq, o_dq, m_n, b_dq1 * scale, b_dq2 * scale, p_cos, p_sin, o_n, HAS_ROPE, D, D1, D2)


@triton.jit
def add_queries_of_gradient(
    b_dk1,
    b_dk2,
    b_dv1,
    b_dv2,
    b_k1,
    b_k2,
    b_v1,
    b_v2,
    b_mask,
    p_q,
    p_do,
    p_lse,
    p_delta,
    o_n,
    N,
    c,
    stride_q_n,
    stride_q_d,
    stride_do_n,
    stride_do_d,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    HAS_MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add what a block of queries, the first N of o_n, gives to the gradients of a block of keys and values; tiles are
    (keys, queries)."""
    m_n = o_n < N
    b_q1, b_q2 = load_head(p_q, o_n * stride_q_n * UNIT, stride_q_d, m_n, D, D1, D2, WHOLE)
    b_lse = tl.load(p_lse + o_n, mask=m_n, other=float("inf")) * LOG2_E  # a row that is not there has no probabilities
    b_p = tl.exp2(products(b_k1, b_k2, b_q1, b_q2, D2, PRECISION) * c - b_lse[None, :])
    if HAS_MASK:
        b_p = tl.where(b_mask[:, None], b_p, 0.0)
    b_do1, b_do2 = load_head(p_do, o_n * stride_do_n * UNIT, stride_do_d, m_n, D, D1, D2, WHOLE)
    b_dv1, b_dv2 = add_products(b_dv1, b_dv2, b_p, b_do1, b_do2, D2, PRECISION)
    b_delta = tl.load(p_delta + o_n, mask=m_n, other=0.0)
    b_ds = b_p * (products(b_v1, b_v2, b_do1, b_do2, D2, PRECISION) - b_delta[None, :])
    b_dk1, b_dk2 = add_products(b_dk1, b_dk2, b_ds, b_q1, b_q2, D2, PRECISION)
    return b_dk1, b_dk2, b_dv1, b_dv2


@triton.jit
def attention_bwd_keys_kernel(
    p_q,
    p_k,
    p_v,
    p_cos,
    p_sin,
    p_mask,
    p_do,
    p_lse,
    p_delta,
    p_dk,
    p_dv,
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
    D1: tl.constexpr,
    D2: tl.constexpr,
    HAS_ROPE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Compute the gradients (B, M, H, D) of a block of BN keys and values of one head over all queries, BM at a time.
    Queries and keys are turned already."""
    n_blocks = tl.cdiv(M, BN)
    i_pair = tl.program_id(0) // n_blocks
    i_b = (i_pair // H).to(tl.int64)
    i_h = (i_pair % H).to(tl.int64)
    o_m = (tl.program_id(0) % n_blocks * BN + tl.arange(0, BN)).to(tl.int64)
    m_m = o_m < M
    c = scale * LOG2_E
    b_k1, b_k2 = load_head(
        p_k + (i_b * stride_k_b + i_h * stride_k_h) * UNIT, o_m * stride_k_m * UNIT, stride_k_d, m_m, D, D1, D2, False
    )
    b_v1, b_v2 = load_head(
        p_v + (i_b * stride_v_b + i_h * stride_v_h) * UNIT, o_m * stride_v_m * UNIT, stride_v_d, m_m, D, D1, D2, False
    )
    b_mask = m_m
    if HAS_MASK:
        b_mask = tl.load(p_mask + i_b * M + o_m, mask=m_m, other=0) != 0
    p_q += (i_b * stride_q_b + i_h * stride_q_h) * UNIT
    p_do += (i_b * stride_do_b + i_h * stride_do_h) * UNIT
    p_lse += i_pair.to(tl.int64) * N
    p_delta += i_pair.to(tl.int64) * N
    b_dk1 = tl.zeros((BN, D1), tl.float32)
    b_dv1 = tl.zeros((BN, D1), tl.float32)
    b_dk2 = tl.zeros((BN, D2 if D2 > 0 else 16), tl.float32)
    b_dv2 = tl.zeros((BN, D2 if D2 > 0 else 16), tl.float32)
    o_n = tl.arange(0, BM).to(tl.int64)
    n_whole = N // BM * BM
    step = tl.full((), BM, tl.int64)
    for _ in range(0, n_whole, BM):
        b_dk1, b_dk2, b_dv1, b_dv2 = add_queries_of_gradient(
            b_dk1, b_dk2, b_dv1, b_dv2, b_k1, b_k2, b_v1, b_v2, b_mask, p_q, p_do, p_lse, p_delta, o_n, BM, c,
            stride_q_n, stride_q_d, stride_do_n, stride_do_d, UNIT, D, D1, D2, HAS_MASK, True, PRECISION,
        )  # fmt: skip
        p_q += step * stride_q_n * UNIT
        p_do += step * stride_do_n * UNIT
        p_lse += BM
        p_delta += BM
    if n_whole < N:
        b_dk1, b_dk2, b_dv1, b_dv2 = add_queries_of_gradient(
            b_dk1, b_dk2, b_dv1, b_dv2, b_k1, b_k2, b_v1, b_v2, b_mask, p_q, p_do, p_lse, p_delta, o_n, N - n_whole, c,
            stride_q_n, stride_q_d, stride_do_n, stride_do_d, UNIT, D, D1, D2, HAS_MASK, False, PRECISION,
        )  # fmt: skip
    o_rows = ((i_b * M + o_m) * H + i_h) * D
    store_gradient(p_dv, o_rows, m_m, b_dv1, b_dv2, p_cos, p_sin, o_m, False, D, D1, D2)
    store_gradient(p_dk, o_rows, m_m, b_dk1 * scale, b_dk2 * scale, p_cos, p_sin, o_m, HAS_ROPE, D, D1, D2)
