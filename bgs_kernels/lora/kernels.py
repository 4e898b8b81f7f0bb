"""The Triton kernels of frozen projections with low-rank adapters: the thin products with A and B, the frozen product
with the low-rank one inside it, and the gradients by x, A and B.

Up to three projections of one input, the slots 0, 1 and 2, are served by one launch; a slot that is not there has no
columns, one without an adapter rank 0. ``low`` is the low-rank intermediate dropout(x) A^T or its gradient dY B, one
(M, r) matrix after the other. x, dY and weights have any strides; A (r, K), B (O, r) and results are contiguous.

Thin products are in float32 where one operand is of it: THIN is their precision, PRECISION that of the frozen ones.
A dropped entry is where ``bgs_kernels.lora.dropout`` says: THRESHOLD is its least word that is kept, 0 without dropout.

Prefixes: p_ pointer, b_ block in registers, o_ offsets, m_ mask, i_ index of a program, slot or first entry.
"""

import triton
import triton.language as tl

from bgs_kernels.pairwise.kernels import product, rounded


@triton.jit
def pick(i_slot, b_0, b_1, b_2):
    """Choose a slot's pointer or number."""
    return tl.where(i_slot == 0, b_0, tl.where(i_slot == 1, b_1, b_2))


@triton.jit
def load_block(p, o_rows, stride_rows, o_columns, stride_columns, rows, columns):
    """Load a block of a (rows, columns) matrix in its own dtype, 0 outside."""
    m = (o_rows < rows)[:, None] & (o_columns < columns)[None, :]
    o_rows = o_rows.to(tl.int64) * stride_rows
    o_columns = o_columns.to(tl.int64) * stride_columns
    return tl.load(p + o_rows[:, None] + o_columns[None, :], mask=m, other=0.0)


@triton.jit
def store_block(p, b, o_rows, stride_rows, o_columns, stride_columns, rows, columns):
    """Store a block of a (rows, columns) matrix in the matrix's dtype."""
    m = (o_rows < rows)[:, None] & (o_columns < columns)[None, :]
    o_rows = o_rows.to(tl.int64) * stride_rows
    o_columns = o_columns.to(tl.int64) * stride_columns
    tl.store(p + o_rows[:, None] + o_columns[None, :], rounded(b, p.dtype.element_ty), mask=m)


@triton.jit
def thin_product(b_a, b_b, b_c, THIN: tl.constexpr):
    """Multiply two blocks, of which one may be of float32 and the other of half precision, and add a third."""
    if b_a.dtype != b_b.dtype:
        b_a = b_a.to(tl.float32)
        b_b = b_b.to(tl.float32)
    return product(b_a, b_b, b_c, THIN)


@triton.jit
def keep(p_seed, o_rows, i_column, K, THRESHOLD: tl.constexpr, QUADS: tl.constexpr, BC: tl.constexpr):
    """Say which of BC columns from ``i_column`` on, a multiple of 4, of rows of width K dropout keeps.

    QUADS: K is a multiple of 4, so that the four words of a counter belong to four neighbours in a row.
    """
    b_seed = tl.load(p_seed)
    o_rows = o_rows.to(tl.int64)[:, None]
    b_threshold = tl.full([], THRESHOLD, tl.uint32)
    if QUADS:
        o_counters = o_rows * (K // 4) + (i_column // 4 + tl.arange(0, BC // 4))[None, :]
    else:
        o_entries = o_rows * K + (i_column + tl.arange(0, BC))[None, :]
        o_counters = o_entries >> 2
    b_low = o_counters.to(tl.uint32)
    b_zero = b_low * 0
    b_0, b_1, b_2, b_3 = tl.philox(b_seed, b_low, (o_counters >> 32).to(tl.uint32), b_zero, b_zero)
    if QUADS:
        b_even = tl.join(b_0 >= b_threshold, b_2 >= b_threshold)
        b_odd = tl.join(b_1 >= b_threshold, b_3 >= b_threshold)
        return tl.reshape(tl.join(b_even, b_odd), (o_rows.shape[0], BC))
    else:
        b_word = o_entries & 3
        b_first = tl.where(b_word == 0, b_0, b_1)
        return tl.where(b_word < 2, b_first, tl.where(b_word == 2, b_2, b_3)) >= b_threshold


@triton.jit
def kept(b, p_seed, o_rows, i_column, K, THRESHOLD: tl.constexpr, QUADS: tl.constexpr, BC: tl.constexpr):
    """Give a block with 0 where dropout drops an entry."""
    if THRESHOLD > 0:
        b = tl.where(keep(p_seed, o_rows, i_column, K, THRESHOLD, QUADS, BC), b, 0.0)
    return b


@triton.jit
def lora_low_kernel(
    p_x_0,
    p_x_1,
    p_x_2,
    p_a_0,
    p_a_1,
    p_a_2,
    p_low,
    p_seeds,
    M,
    K_0,
    K_1,
    K_2,
    r_0,
    r_1,
    r_2,
    seed_0,
    seed_1,
    seed_2,
    factor_0,
    factor_1,
    factor_2,
    stride_x_0,
    stride_x_1,
    stride_x_2,
    stride_x_k,
    SLOTS: tl.constexpr,
    IS_A: tl.constexpr,
    THRESHOLD: tl.constexpr,
    QUADS: tl.constexpr,
    THIN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Store factor * dropout(x) A^T or, not IS_A, factor * x A of every slot, which has its own x (M, K): program
    (m * SLOTS + i) * PARTS + j rows m * BM and ranks j * BR and on of slot i. Neighbours may read the same x."""
    i_m = tl.program_id(0) // (SLOTS * PARTS)
    i_slot = tl.program_id(0) // PARTS % SLOTS
    o_m = (i_m * BM + tl.arange(0, BM)).to(tl.int64)
    o_r = tl.program_id(0) % PARTS * BR + tl.arange(0, BR)
    p_x = pick(i_slot, p_x_0, p_x_1, p_x_2)
    p_a = pick(i_slot, p_a_0, p_a_1, p_a_2)
    p_seed = p_seeds + pick(i_slot, seed_0, seed_1, seed_2)
    K = pick(i_slot, K_0, K_1, K_2)
    r = pick(i_slot, r_0, r_1, r_2)
    stride_x_m = pick(i_slot, stride_x_0, stride_x_1, stride_x_2)
    b_low = tl.zeros((BM, BR), tl.float32)
    for k in range(0, K, BK):
        o_k = k + tl.arange(0, BK)
        b_x = load_block(p_x, o_m, stride_x_m, o_k, stride_x_k, M, K)
        b_x = kept(b_x, p_seed, o_m, k, K, THRESHOLD, QUADS, BK)
        b_a = load_block(p_a, o_k, 1, o_r, K, K, r) if IS_A else load_block(p_a, o_k, r, o_r, 1, K, r)
        b_low = thin_product(b_x, b_a, b_low, THIN)
    p_low += tl.cast(M, tl.int64) * pick(i_slot, 0, r_0, r_0 + r_1)
    store_block(p_low, b_low * pick(i_slot, factor_0, factor_1, factor_2), o_m, r, o_r, 1, M, r)


@triton.jit
def lora_low_shared_kernel(
    p_x,
    p_a_0,
    p_a_1,
    p_a_2,
    p_low,
    M,
    K,
    r_0,
    r_1,
    r_2,
    stride_x_m,
    stride_x_k,
    SLOTS: tl.constexpr,
    THIN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Store x A^T of two or three slots, x read once: program m * PARTS + j rows m * BM and ranks j * BR and on."""
    o_m = (tl.program_id(0) // PARTS * BM + tl.arange(0, BM)).to(tl.int64)
    o_r = tl.program_id(0) % PARTS * BR + tl.arange(0, BR)
    b_low_0 = tl.zeros((BM, BR), tl.float32)
    b_low_1 = tl.zeros((BM, BR), tl.float32)
    b_low_2 = tl.zeros((BM, BR), tl.float32)
    for k in range(0, K, BK):
        o_k = k + tl.arange(0, BK)
        b_x = load_block(p_x, o_m, stride_x_m, o_k, stride_x_k, M, K)
        b_low_0 = thin_product(b_x, load_block(p_a_0, o_k, 1, o_r, K, K, r_0), b_low_0, THIN)
        b_low_1 = thin_product(b_x, load_block(p_a_1, o_k, 1, o_r, K, K, r_1), b_low_1, THIN)
        if SLOTS > 2:
            b_low_2 = thin_product(b_x, load_block(p_a_2, o_k, 1, o_r, K, K, r_2), b_low_2, THIN)
    rows = tl.cast(M, tl.int64)
    store_block(p_low, b_low_0, o_m, r_0, o_r, 1, M, r_0)
    store_block(p_low + rows * r_0, b_low_1, o_m, r_1, o_r, 1, M, r_1)
    if SLOTS > 2:
        store_block(p_low + rows * (r_0 + r_1), b_low_2, o_m, r_2, o_r, 1, M, r_2)


@triton.jit
def low_rank_block(
    p_low, p_up, stride_up_r, stride_up_c, o_m, o_c, M, C, r, THIN: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """Multiply rows of ``low`` (M, r) with columns of the matrix ``up`` (r, C)."""
    b_sum = tl.zeros((BM, BC), tl.float32)
    for j in range(0, r, BR):
        o_r = j + tl.arange(0, BR)
        b_low = load_block(p_low, o_m, r, o_r, 1, M, r)
        b_up = load_block(p_up, o_r, stride_up_r, o_c, stride_up_c, r, C)
        b_sum = thin_product(b_low, b_up, b_sum, THIN)
    return b_sum


@triton.jit
def lora_add_kernel(
    p_out,
    p_low,
    p_up,
    p_seed,
    M,
    C,
    r,
    factor,
    stride_up_r,
    stride_up_c,
    THRESHOLD: tl.constexpr,
    QUADS: tl.constexpr,
    THIN: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    """Add factor * low up to ``out`` (M, C) where dropout keeps the entry: program (m, c) one block."""
    o_m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    i_c = tl.program_id(1) * BC
    o_c = i_c + tl.arange(0, BC)
    b_sum = low_rank_block(p_low, p_up, stride_up_r, stride_up_c, o_m, o_c, M, C, r, THIN, BM, BC, BR)
    b_sum = kept(b_sum * factor, p_seed, o_m, i_c, C, THRESHOLD, QUADS, BC)
    b_out = load_block(p_out, o_m, C, o_c, 1, M, C).to(tl.float32)
    store_block(p_out, b_out + b_sum, o_m, C, o_c, 1, M, C)


@triton.jit
def place_of_program(n_rows, n_columns, GROUP: tl.constexpr):
    """Give the row and the column of blocks of a program, so that programs that run together share both."""
    i_program = tl.program_id(0)
    i_group = i_program // (GROUP * n_columns)
    n_group = tl.minimum(n_rows - i_group * GROUP, GROUP)
    i_within = i_program % (GROUP * n_columns)
    return i_group * GROUP + i_within % n_group, i_within // n_group


@triton.jit
def lora_fwd_kernel(
    p_x,
    p_w_0,
    p_w_1,
    p_w_2,
    p_bias_0,
    p_bias_1,
    p_bias_2,
    p_a_0,
    p_a_1,
    p_a_2,
    p_b_0,
    p_b_1,
    p_b_2,
    p_low,
    p_y_0,
    p_y_1,
    p_y_2,
    M,
    K,
    O_0,
    O_1,
    O_2,
    r_0,
    r_1,
    r_2,
    scaling_0,
    scaling_1,
    scaling_2,
    stride_x_m,
    stride_x_k,
    stride_w_o,
    stride_w_k,
    SLOTS: tl.constexpr,
    BIASED: tl.constexpr,
    IN_LOOP: tl.constexpr,
    PRECISION: tl.constexpr,
    THIN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Store a tile (BM, BN) of x W^T + b + scaling * low B^T of one slot.

    BIASED: bit i says whether slot i has a bias. IN_LOOP: ``low`` is x A^T, made beside the frozen product and stored
    by the first column of tiles, for r up to BR; else it is read.
    """
    n_0 = tl.cdiv(O_0, BN)
    n_1 = tl.cdiv(O_1, BN)
    i_m, i_n = place_of_program(tl.cdiv(M, BM), n_0 + n_1 + tl.cdiv(O_2, BN), GROUP)
    i_slot = 0
    if SLOTS > 1:
        i_slot = (i_n >= n_0).to(tl.int32) + (i_n >= n_0 + n_1).to(tl.int32)
        i_n -= pick(i_slot, 0, n_0, n_0 + n_1)
    p_w = pick(i_slot, p_w_0, p_w_1, p_w_2)
    p_bias = pick(i_slot, p_bias_0, p_bias_1, p_bias_2)
    p_a = pick(i_slot, p_a_0, p_a_1, p_a_2)
    p_b = pick(i_slot, p_b_0, p_b_1, p_b_2)
    p_y = pick(i_slot, p_y_0, p_y_1, p_y_2)
    O_i = pick(i_slot, O_0, O_1, O_2)
    r = pick(i_slot, r_0, r_1, r_2)
    scaling = pick(i_slot, scaling_0, scaling_1, scaling_2)
    p_low += tl.cast(M, tl.int64) * pick(i_slot, 0, r_0, r_0 + r_1)
    o_m = (i_m * BM + tl.arange(0, BM)).to(tl.int64)
    o_n = i_n * BN + tl.arange(0, BN)
    o_r = tl.arange(0, BR)
    if IN_LOOP:
        b_sum = tl.zeros((BM, BN), tl.float32)
        b_low = tl.zeros((BM, BR), tl.float32)
    else:
        b_sum = scaling * low_rank_block(p_low, p_b, 1, r, o_m, o_n, M, O_i, r, THIN, BM, BN, BR)
    for k in range(0, K, BK):
        o_k = k + tl.arange(0, BK)
        b_x = load_block(p_x, o_m, stride_x_m, o_k, stride_x_k, M, K)
        b_w = load_block(p_w, o_n, stride_w_o, o_k, stride_w_k, O_i, K)
        b_sum = product(b_x, tl.trans(b_w), b_sum, PRECISION)
        if IN_LOOP:
            b_low = thin_product(b_x, load_block(p_a, o_k, 1, o_r, K, K, r), b_low, THIN)
    if IN_LOOP:
        if i_n == 0:
            store_block(p_low, b_low, o_m, r, o_r, 1, M, r)
        b_b = load_block(p_b, o_r, 1, o_n, r, r, O_i)
        b_sum = thin_product(rounded(b_low * scaling, b_b.dtype), b_b, b_sum, THIN)
    if BIASED > 0:
        m_bias = o_n < O_i * ((BIASED >> i_slot) & 1)
        b_sum += tl.load(p_bias + o_n, mask=m_bias, other=0.0).to(tl.float32)[None, :]
    store_block(p_y, b_sum, o_m, O_i, o_n, 1, M, O_i)


@triton.jit
def lora_bwd_kernel(
    p_dy_0,
    p_dy_1,
    p_dy_2,
    p_w_0,
    p_w_1,
    p_w_2,
    p_a_0,
    p_a_1,
    p_a_2,
    p_b_0,
    p_b_1,
    p_b_2,
    p_dlow,
    p_dx,
    p_seeds,
    M,
    K,
    O_0,
    O_1,
    O_2,
    r_0,
    r_1,
    r_2,
    seed_0,
    seed_1,
    seed_2,
    scaling_0,
    scaling_1,
    scaling_2,
    keep_scale,
    stride_dy_0,
    stride_dy_1,
    stride_dy_2,
    stride_dy_o,
    stride_w_o,
    stride_w_k,
    SLOTS: tl.constexpr,
    IN_LOOP: tl.constexpr,
    THRESHOLD: tl.constexpr,
    QUADS: tl.constexpr,
    PRECISION: tl.constexpr,
    THIN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Store a tile (BM, BN) of the gradient by x, the sum over slots of dY W + dropout'(dlow A).

    IN_LOOP: dlow = scaling * dY B is made beside dY W and stored by the first column of tiles, for r up to BR; else it
    is read.
    """
    i_m, i_n = place_of_program(tl.cdiv(M, BM), tl.cdiv(K, BN), GROUP)
    o_m = (i_m * BM + tl.arange(0, BM)).to(tl.int64)
    o_n = i_n * BN + tl.arange(0, BN)
    o_r = tl.arange(0, BR)
    b_sum = tl.zeros((BM, BN), tl.float32)
    for i_slot in range(0, SLOTS):
        p_dy = pick(i_slot, p_dy_0, p_dy_1, p_dy_2)
        p_w = pick(i_slot, p_w_0, p_w_1, p_w_2)
        p_a = pick(i_slot, p_a_0, p_a_1, p_a_2)
        p_b = pick(i_slot, p_b_0, p_b_1, p_b_2)
        p_low = p_dlow + tl.cast(M, tl.int64) * pick(i_slot, 0, r_0, r_0 + r_1)
        O_i = pick(i_slot, O_0, O_1, O_2)
        r = pick(i_slot, r_0, r_1, r_2)
        stride_dy_m = pick(i_slot, stride_dy_0, stride_dy_1, stride_dy_2)
        b_part = tl.zeros((BM, BN), tl.float32)
        b_dlow = tl.zeros((BM, BR), tl.float32)
        if not IN_LOOP:
            b_part = low_rank_block(p_low, p_a, K, 1, o_m, o_n, M, K, r, THIN, BM, BN, BR)
        if IN_LOOP:
            for k in range(0, O_i, BK):
                o_k = k + tl.arange(0, BK)
                b_dy = load_block(p_dy, o_m, stride_dy_m, o_k, stride_dy_o, M, O_i)
                b_w = load_block(p_w, o_k, stride_w_o, o_n, stride_w_k, O_i, K)
                b_sum = product(b_dy, b_w, b_sum, PRECISION)
                b_dlow = thin_product(b_dy, load_block(p_b, o_k, r, o_r, 1, O_i, r), b_dlow, THIN)
            b_dlow *= pick(i_slot, scaling_0, scaling_1, scaling_2)
            if i_n == 0:
                store_block(p_low, b_dlow, o_m, r, o_r, 1, M, r)
            b_a = load_block(p_a, o_r, K, o_n, 1, r, K)
            b_part = thin_product(rounded(b_dlow, b_a.dtype), b_a, b_part, THIN)
        if THRESHOLD > 0:
            p_seed = p_seeds + pick(i_slot, seed_0, seed_1, seed_2)
            b_part = kept(b_part * keep_scale, p_seed, o_m, i_n * BN, K, THRESHOLD, QUADS, BN)
        b_sum += b_part
        if not IN_LOOP:
            for k in range(0, O_i, BK):
                o_k = k + tl.arange(0, BK)
                b_dy = load_block(p_dy, o_m, stride_dy_m, o_k, stride_dy_o, M, O_i)
                b_w = load_block(p_w, o_k, stride_w_o, o_n, stride_w_k, O_i, K)
                b_sum = product(b_dy, b_w, b_sum, PRECISION)
    store_block(p_dx, b_sum, o_m, K, o_n, 1, M, K)


@triton.jit
def lora_bwd_a_kernel(
    p_x,
    p_a_0,
    p_a_1,
    p_a_2,
    p_dlow,
    p_dx,
    p_partial,
    p_seeds,
    M,
    K,
    r_0,
    r_1,
    r_2,
    seed_0,
    seed_1,
    seed_2,
    keep_scale,
    chunk,
    total,
    stride_x_m,
    stride_x_k,
    SLOTS: tl.constexpr,
    UPDATE: tl.constexpr,
    THRESHOLD: tl.constexpr,
    QUADS: tl.constexpr,
    THIN: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    """Store what ``chunk`` rows add to the gradient by A of every slot: program (c, p, j) columns c * BC and ranks
    j * BR and on, into partial result p of ``total`` numbers.

    UPDATE: also add the low-rank terms to the gradient by x (M, K), which holds the frozen ones, with the same masks;
    for r up to BR. A program's part of x and of that gradient stays in the cache from slot to slot.
    """
    i_c = tl.program_id(0) * BC
    o_c = i_c + tl.arange(0, BC)
    i_chunk = tl.program_id(1)
    o_r = tl.program_id(2) * BR + tl.arange(0, BR)
    p_partial += tl.cast(i_chunk, tl.int64) * total
    for i_slot in range(0, SLOTS):
        p_a = pick(i_slot, p_a_0, p_a_1, p_a_2)
        p_low = p_dlow + tl.cast(M, tl.int64) * pick(i_slot, 0, r_0, r_0 + r_1)
        p_seed = p_seeds + pick(i_slot, seed_0, seed_1, seed_2)
        r = pick(i_slot, r_0, r_1, r_2)
        b_da = tl.zeros((BR, BC), tl.float32)
        for m in range(i_chunk * chunk, tl.minimum((i_chunk + 1) * chunk, M), BM):
            o_m = (m + tl.arange(0, BM)).to(tl.int64)
            b_x = load_block(p_x, o_m, stride_x_m, o_c, stride_x_k, M, K)
            b_dlow = load_block(p_low, o_m, r, o_r, 1, M, r)
            if THRESHOLD > 0:
                b_keep = keep(p_seed, o_m, i_c, K, THRESHOLD, QUADS, BC)
                b_x = tl.where(b_keep, b_x, 0.0)
            b_da = thin_product(tl.trans(b_dlow), b_x, b_da, THIN)
            if UPDATE:
                b_a = load_block(p_a, o_r, K, o_c, 1, r, K)
                b_part = thin_product(b_dlow, b_a, tl.zeros((BM, BC), tl.float32), THIN) * keep_scale
                if THRESHOLD > 0:
                    b_part = tl.where(b_keep, b_part, 0.0)
                b_dx = load_block(p_dx, o_m, K, o_c, 1, M, K).to(tl.float32)
                store_block(p_dx, b_dx + b_part, o_m, K, o_c, 1, M, K)
        p_da = p_partial + pick(i_slot, 0, r_0, r_0 + r_1) * K
        store_block(p_da, b_da * keep_scale, o_r, K, o_c, 1, r, K)
        if UPDATE:
            tl.debug_barrier()  # the next slot's loads may be other threads'


@triton.jit
def lora_bwd_b_kernel(
    p_dy_0,
    p_dy_1,
    p_dy_2,
    p_low,
    p_partial,
    M,
    O_0,
    O_1,
    O_2,
    r_0,
    r_1,
    r_2,
    scaling_0,
    scaling_1,
    scaling_2,
    chunk,
    total,
    stride_dy_0,
    stride_dy_1,
    stride_dy_2,
    stride_dy_o,
    SLOTS: tl.constexpr,
    THIN: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    """Store what ``chunk`` rows add to the gradient scaling * dY^T low by B (O, r): program (c, p, j * SLOTS + i)
    columns c * BC of dY and ranks j * BR and on of slot i, into partial result p of ``total`` numbers."""
    o_c = tl.program_id(0) * BC + tl.arange(0, BC)
    i_chunk = tl.program_id(1)
    o_r = tl.program_id(2) // SLOTS * BR + tl.arange(0, BR)
    i_slot = tl.program_id(2) % SLOTS
    p_dy = pick(i_slot, p_dy_0, p_dy_1, p_dy_2)
    stride_dy_m = pick(i_slot, stride_dy_0, stride_dy_1, stride_dy_2)
    O_i = pick(i_slot, O_0, O_1, O_2)
    r = pick(i_slot, r_0, r_1, r_2)
    p_low += tl.cast(M, tl.int64) * pick(i_slot, 0, r_0, r_0 + r_1)
    p_partial += tl.cast(i_chunk, tl.int64) * total + pick(i_slot, 0, O_0 * r_0, O_0 * r_0 + O_1 * r_1)
    b_db = tl.zeros((BR, BC), tl.float32)
    for m in range(i_chunk * chunk, tl.minimum((i_chunk + 1) * chunk, M), BM):
        o_m = (m + tl.arange(0, BM)).to(tl.int64)
        b_dy = load_block(p_dy, o_m, stride_dy_m, o_c, stride_dy_o, M, O_i)
        b_low = load_block(p_low, o_m, r, o_r, 1, M, r)
        b_db = thin_product(tl.trans(b_low), b_dy, b_db, THIN)
    b_db *= pick(i_slot, scaling_0, scaling_1, scaling_2)
    store_block(p_partial, b_db, o_r, 1, o_c, r, r, O_i)


@triton.jit
def lora_sum_kernel(p_partial, p_out, n_partial, total, BC: tl.constexpr):
    """Add the partial results (n, total) in their order: program c numbers c * BC and on."""
    o = tl.program_id(0) * BC + tl.arange(0, BC)
    b_sum = tl.zeros((BC,), tl.float32)
    for i in range(0, n_partial):
        b_sum += tl.load(p_partial + tl.cast(i, tl.int64) * total + o, mask=o < total, other=0.0)
    tl.store(p_out + o, rounded(b_sum, p_out.dtype.element_ty), mask=o < total)
