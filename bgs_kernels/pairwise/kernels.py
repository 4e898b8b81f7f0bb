"""The Triton kernels of distances: what is known of a row before it is compared, a tile of distances, and the gradient
of a block of rows. The device functions are those of every op that compares rows.

Rows are compared as u = (x * scale - mean) * unit - origin: scale is a power of two that brings the row's largest
entry to 1..2, mean the mean of the scaled entries ("correlation") or 0, unit the reciprocal length of what is left
("cosine", "correlation"; 0 for a row without direction) or 1, NaN for a row that is not finite. The origin, the mean
of a few rows, keeps the precision of rows that lie close together. Rows of half precision under "cosine" and "dot" are
multiplied as they are (RAW): their products are exact in float32, and what would be subtracted is not representable in
them.

Prefixes: p_ pointer, b_ block in registers, o_ offsets, m_ mask, n_ length of a loop.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Whether kernels run in Triton's interpreter, whose products of bfloat16 are wrong."""

ROUNDING = tl.constexpr(2.0**-18)
"""``bgs_kernels.pairwise.reference.ROUNDING`` of float32: the part of cancelled terms that counts as rounding error."""

SAMPLE = tl.constexpr(16)
"""Rows whose mean is the origin: with n of them distances lose 1/n of the precision that the mean of all rows gives."""

WIDEST = tl.constexpr(2.0**60)
"""How far from 1 the largest entry of a row of bfloat16 may be, either way, under "cosine": beyond, products of two
rows could leave the range of float32, and the row counts as not finite."""


@triton.jit
def is_finite(b_x):
    return tl.abs(b_x) < float("inf")


@triton.jit
def rounded(b_x, dtype: tl.constexpr):
    """Round float32 to a dtype, to nearest; the interpreter truncates what becomes bfloat16."""
    if INTERPRETED:
        if dtype == tl.bfloat16 and b_x.dtype == tl.float32:
            b_bits = b_x.to(tl.int32, bitcast=True)
            b_bits = (b_bits + 0x7FFF + ((b_bits >> 16) & 1)) & -65536
            b_x = tl.where(is_finite(b_x), b_bits.to(tl.float32, bitcast=True), b_x)
    return b_x.to(dtype)


@triton.jit
def is_bounded(METRIC: tl.constexpr):
    return METRIC == "cosine" or METRIC == "correlation"


@triton.jit
def load_rows(p_x, o_rows, stride_d, o_columns, m_rows, D):
    """Load a (rows, columns) block in its own dtype; 0 outside. ``o_rows`` are element offsets (int64)."""
    m = m_rows[:, None] & (o_columns < D)[None, :]
    return tl.load(p_x + o_rows[:, None] + (o_columns * stride_d)[None, :], mask=m, other=0.0)


@triton.jit
def power_of_two_below(b_top):
    """Give the power of two that scales ``b_top`` (>= 0, finite) to 1..2 (to 2..4 at the upper end of the range)."""
    b_exponent = (b_top.to(tl.int32, bitcast=True) >> 23) & 0xFF
    b_scale = ((254 - tl.minimum(b_exponent, 253)) << 23).to(tl.float32, bitcast=True)
    return tl.where(b_top == 0, 1.0, b_scale)


@triton.jit
def row_statistics(p_x, o_rows, stride_d, m_rows, D, METRIC: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """Compute scale, mean and unit (BM,) of rows; rows outside the mask are zero."""
    b_top = tl.zeros((BM, BK), tl.float32)
    b_poison = tl.zeros((BM, BK), tl.float32)
    for k in range(0, D, BK):
        b_x = load_rows(p_x, o_rows, stride_d, k + tl.arange(0, BK), m_rows, D).to(tl.float32)
        b_top = tl.maximum(b_top, tl.abs(b_x))
        b_poison += tl.where(is_finite(b_x), 0.0, float("nan"))
    b_unit = 1.0 + tl.sum(b_poison, 1)
    b_mean = tl.zeros((BM,), tl.float32)
    b_scale = b_mean + 1.0
    if METRIC == "cosine" or METRIC == "correlation":
        b_scale = power_of_two_below(tl.max(b_top, 1))
        b_rest = tl.max(b_top, 1)
        b_floor = b_mean
        if METRIC == "correlation":
            for _ in tl.static_range(2):  # the second time the mean of what the rounding of the first left
                b_sum = tl.zeros((BM, BK), tl.float32)
                for k in range(0, D, BK):
                    o_k = k + tl.arange(0, BK)
                    b_x = load_rows(p_x, o_rows, stride_d, o_k, m_rows, D).to(tl.float32)
                    b_sum += tl.where((o_k < D)[None, :], b_x * b_scale[:, None] - b_mean[:, None], 0.0)
                b_mean += tl.sum(b_sum, 1) / D
            b_floor = tl.max(b_top, 1) * b_scale * ROUNDING  # what is left of a constant row
        b_square = tl.zeros((BM, BK), tl.float32)
        b_largest = tl.zeros((BM, BK), tl.float32)
        for k in range(0, D, BK):
            o_k = k + tl.arange(0, BK)
            b_x = load_rows(p_x, o_rows, stride_d, o_k, m_rows, D).to(tl.float32)
            b_x = tl.where((o_k < D)[None, :], b_x * b_scale[:, None] - b_mean[:, None], 0.0)
            b_square += b_x * b_x
            b_largest = tl.maximum(b_largest, tl.abs(b_x))
        b_rest = tl.max(b_largest, 1)
        b_without = b_rest <= b_floor
        b_length = tl.sqrt_rn(tl.sum(b_square, 1))
        b_unit = tl.where(b_without, 0.0, tl.div_rn(1.0, tl.where(b_without, 1.0, b_length))) + (b_unit - 1.0)
        if METRIC == "cosine" and p_x.dtype.element_ty == tl.bfloat16:
            b_unit = tl.where((b_scale <= WIDEST) & (b_scale >= 1.0 / WIDEST), b_unit, float("nan"))
    return b_scale, b_mean, b_unit


@triton.jit
def load_statistics(p_stats, o_rows, m_rows, N, METRIC: tl.constexpr):
    """Load scale, mean and unit of rows of one set, stored as (3, N); those of a zero row outside the mask."""
    b_scale = tl.load(p_stats + o_rows, mask=m_rows, other=1.0)
    b_mean = tl.load(p_stats + N + o_rows, mask=m_rows, other=0.0)
    b_unit = tl.load(p_stats + 2 * N + o_rows, mask=m_rows, other=0.0 if is_bounded(METRIC) else 1.0)
    return b_scale, b_mean, b_unit


@triton.jit
def unit_rows(p_x, o_rows, stride_d, o_columns, m_rows, D, b_scale, b_mean, b_unit):
    """Load a (rows, columns) block as float32, scaled, about its mean and of length one; 0 outside the columns."""
    b_x = load_rows(p_x, o_rows, stride_d, o_columns, m_rows, D).to(tl.float32)
    b_x = (b_x * b_scale[:, None] - b_mean[:, None]) * b_unit[:, None]
    return tl.where((o_columns < D)[None, :], b_x, 0.0)


@triton.jit
def store_origin(p_x, stride_n, stride_d, p_origin, n_rows, D, METRIC: tl.constexpr, BK: tl.constexpr):
    """Store the mean (D,) of the finite ones of ``SAMPLE`` rows that are spread evenly over the set."""
    o_rows = (tl.arange(0, SAMPLE).to(tl.int64) * n_rows) // SAMPLE
    m_rows = o_rows < n_rows
    o_rows = o_rows * stride_n
    b_scale, b_mean, b_unit = row_statistics(p_x, o_rows, stride_d, m_rows, D, METRIC, SAMPLE, BK)
    b_good = is_finite(b_unit) & m_rows
    b_count = tl.maximum(tl.sum(b_good.to(tl.float32), 0), 1.0)
    for k in range(0, D, BK):
        o_k = k + tl.arange(0, BK)
        b_u = unit_rows(p_x, o_rows, stride_d, o_k, m_rows, D, b_scale, b_mean, b_unit)
        b_origin = tl.sum(tl.where(b_good[:, None], b_u, 0.0), 0) / b_count
        # a mean that overflows is no origin
        tl.store(p_origin + o_k, tl.where(is_finite(b_origin), b_origin, 0.0), mask=o_k < D)


@triton.jit
def prepare_rows(
    p_x,
    p_stats,
    p_origin,
    stride_n,
    stride_d,
    i_block,
    n_blocks,
    n_rows,
    N,
    D,
    METRIC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Store the statistics (3, N) of one block of a set's rows or, as the block after the last, the set's origin (D,).

    Rows from ``n_rows`` on are padding and count as zero.
    """
    if i_block < n_blocks:
        o_n = (i_block * BM + tl.arange(0, BM)).to(tl.int64)
        b_scale, b_mean, b_unit = row_statistics(p_x, o_n * stride_n, stride_d, o_n < n_rows, D, METRIC, BM, BK)
        tl.store(p_stats + o_n, b_scale, mask=o_n < N)
        tl.store(p_stats + N + o_n, b_mean, mask=o_n < N)
        tl.store(p_stats + 2 * N + o_n, b_unit, mask=o_n < N)
    else:
        store_origin(p_x, stride_n, stride_d, p_origin, n_rows, D, METRIC, BK)


@triton.jit
def product(b_a, b_b, b_c, PRECISION: tl.constexpr):
    """Multiply two blocks and add a third, in float32."""
    if INTERPRETED:
        return b_c + tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), input_precision="ieee")
    return tl.dot(b_a, b_b, b_c, input_precision=PRECISION)


@triton.jit
def products_of_rows(
    p_x,
    o_x,
    stride_x,
    m_x,
    p_y,
    o_y,
    stride_y,
    m_y,
    D,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Multiply rows as they are; all products of half precision are exact."""
    b_products = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        o_k = k + tl.arange(0, BK)
        b_x = load_rows(p_x, o_x, stride_x, o_k, m_x, D)
        b_y = load_rows(p_y, o_y, stride_y, o_k, m_y, D)
        b_products = product(b_x, tl.trans(b_y), b_products, PRECISION)
    return b_products


@triton.jit
def distance_tile(
    p_x,
    o_x,
    stride_x,
    m_x,
    b_scale_x,
    b_mean_x,
    b_unit_x,
    p_y,
    o_y,
    stride_y,
    m_y,
    b_scale_y,
    b_mean_y,
    b_unit_y,
    p_origin,
    D,
    METRIC: tl.constexpr,
    RAW: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the distances (BM, BN) of two blocks of rows, NaN beside a row that is not finite."""
    if METRIC == "dot":
        b_products = products_of_rows(p_x, o_x, stride_x, m_x, p_y, o_y, stride_y, m_y, D, BM, BN, BK, PRECISION)
        return -b_products + (b_unit_x - 1.0)[:, None] + (b_unit_y - 1.0)[None, :]
    elif RAW:
        b_products = products_of_rows(p_x, o_x, stride_x, m_x, p_y, o_y, stride_y, m_y, D, BM, BN, BK, PRECISION)
        b_products = b_products * (b_scale_x * b_unit_x)[:, None] * (b_scale_y * b_unit_y)[None, :]
        b_distances = 1.0 - b_products
        return tl.where(b_distances < ROUNDING, 0.0, b_distances)
    else:
        b_products = tl.zeros((BM, BN), tl.float32)
        b_square_x = tl.zeros((BM, BK), tl.float32)
        b_square_y = tl.zeros((BN, BK), tl.float32)
        for k in range(0, D, BK):
            o_k = k + tl.arange(0, BK)
            b_origin = tl.load(p_origin + o_k, mask=o_k < D, other=0.0)[None, :]
            b_x = unit_rows(p_x, o_x, stride_x, o_k, m_x, D, b_scale_x, b_mean_x, b_unit_x) - b_origin
            b_y = unit_rows(p_y, o_y, stride_y, o_k, m_y, D, b_scale_y, b_mean_y, b_unit_y) - b_origin
            b_square_x += b_x * b_x
            b_square_y += b_y * b_y
            b_products = product(b_x, tl.trans(b_y), b_products, PRECISION)
        b_size_x = tl.sum(b_square_x, 1)
        b_size_y = tl.sum(b_square_y, 1)
        if METRIC == "cosine" or METRIC == "correlation":  # a row without direction is at distance 1
            b_size_x += (b_unit_x == 0).to(tl.float32)
            b_size_y += (b_unit_y == 0).to(tl.float32)
        b_sizes = b_size_x[:, None] + b_size_y[None, :]
        b_squared = b_sizes - 2.0 * b_products
        # strictly less: what overflowed is not less than itself
        b_squared = tl.where(b_squared < ROUNDING * b_sizes, 0.0, b_squared)
        if METRIC == "sqeuclidean":
            return b_squared
        elif METRIC == "euclidean":
            return tl.sqrt_rn(b_squared)
        else:
            return 0.5 * b_squared


@triton.jit
def steepness(b_distances, METRIC: tl.constexpr):
    """Give kappa in the derivative kappa * (u_x - u_y) of a distance by u_x ("dot": kappa * u_y); 0 at distance 0."""
    if METRIC == "dot":
        return tl.full(b_distances.shape, -1.0, tl.float32)
    b_apart = b_distances != 0
    if METRIC == "euclidean":
        return tl.where(b_apart, 1.0 / tl.where(b_apart, b_distances, 1.0), 0.0)
    elif METRIC == "sqeuclidean":
        return tl.where(b_apart, 2.0, 0.0)
    else:
        return tl.where(b_apart, 1.0, 0.0)


@triton.jit
def factors(b_weights, b_scale_y, b_unit_y, METRIC: tl.constexpr, RAW: tl.constexpr):
    """Turn the weights (BM, BN) of rows u_y into those of the rows as ``add_rows`` loads them, in float32."""
    if RAW and METRIC != "dot":
        b_weights = b_weights * (b_unit_y * b_scale_y)[None, :]
    return b_weights


@triton.jit
def nearest_tf32(b_x):
    """Round float32 to the 10 bits of fraction that the tensor cores keep of it, ties away from zero."""
    b_bits = (b_x.to(tl.int32, bitcast=True) + 0x1000) & -8192
    return tl.where(is_finite(b_x), b_bits.to(tl.float32, bitcast=True), b_x)


@triton.jit
def as_multiplied(b_weights, b_scale_y, b_unit_y, p_y, METRIC: tl.constexpr, RAW: tl.constexpr):
    """Give the weights (BM, BN) of rows u_y, float32, the rounding that ``add_rows`` will give their ``factors``.

    A gradient is a sum of c_xy (u_x - u_y), in which nearly all cancels where rows are nearly parallel: only if u_x and
    u_y have the same c_xy is its error relative to what is left.
    """
    if RAW and METRIC != "dot":
        b_factor = b_unit_y * b_scale_y
        b_weights = b_weights * b_factor[None, :]
        if p_y.dtype.element_ty == tl.bfloat16:
            b_weights = rounded(b_weights, tl.bfloat16).to(tl.float32)
        else:
            b_weights = nearest_tf32(b_weights)
        # a row without direction is 0 in every sum
        b_weights = b_weights * tl.where(b_factor == 0, 0.0, 1.0 / tl.where(b_factor == 0, 1.0, b_factor))[None, :]
    return b_weights


@triton.jit
def add_rows(
    b_sum,
    b_weights,
    p_y,
    o_y,
    stride_y,
    o_columns,
    m_y,
    b_scale_y,
    b_mean_y,
    b_unit_y,
    p_origin,
    D,
    METRIC: tl.constexpr,
    RAW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the sums (BM, columns) of a block of rows, weighted by ``factors``: of u_y or, RAW, of u_y + origin.

    Beside bfloat16 the weights are rounded to it and, since float16 has not their range, to TensorFloat-32 beside
    float16.
    """
    if RAW:
        b_y = load_rows(p_y, o_y, stride_y, o_columns, m_y, D)
        if b_y.dtype == tl.bfloat16:
            return product(rounded(b_weights, tl.bfloat16), b_y, b_sum, "tf32")
        else:
            return product(nearest_tf32(b_weights), b_y.to(tl.float32), b_sum, "tf32")
    else:
        b_y = unit_rows(p_y, o_y, stride_y, o_columns, m_y, D, b_scale_y, b_mean_y, b_unit_y)
        if METRIC != "dot":
            b_y -= tl.load(p_origin + o_columns, mask=o_columns < D, other=0.0)[None, :]
        return product(b_weights, b_y, b_sum, PRECISION)


@triton.jit
def row_gradient(
    b_sum,
    b_total,
    b_radial,
    p_x,
    o_x,
    stride_x,
    o_columns,
    m_x,
    b_scale,
    b_mean,
    b_unit,
    p_origin,
    D,
    METRIC: tl.constexpr,
    RAW: tl.constexpr,
):
    """Turn sums over the pairs of each row into the gradient (BM, columns) by that row.

    Args:
        b_sum: sum of c_xy u_y, as ``add_rows`` makes it, c_xy the derivative by d_xy times ``steepness``.
        b_total: (BM,) sum of c_xy.
        b_radial: (BM,) sum of c_xy d_xy, which is u_x . sum of c_xy (u_x - u_y) for vectors of length one.
    """
    if METRIC == "dot":
        return b_sum
    b_u = unit_rows(p_x, o_x, stride_x, o_columns, m_x, D, b_scale, b_mean, b_unit)
    b_centred = b_u
    if not RAW:
        b_centred = b_u - tl.load(p_origin + o_columns, mask=o_columns < D, other=0.0)[None, :]
    b_gradient = b_total[:, None] * b_centred - b_sum
    if METRIC == "cosine" or METRIC == "correlation":
        b_gradient = (b_gradient - b_radial[:, None] * b_u) * b_unit[:, None] * b_scale[:, None]
    return b_gradient


@triton.jit
def pairwise_rows_kernel(
    p_x,
    p_x_stats,
    p_origin,
    p_y,
    p_y_stats,
    N,
    M,
    D,
    stride_x_b,
    stride_x_n,
    stride_x_d,
    stride_y_b,
    stride_y_n,
    stride_y_d,
    METRIC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Store the statistics of the rows of x, their origin, and the statistics of the rows of y, a set each (p, set)."""
    i_program = tl.program_id(0)
    i_set = tl.program_id(1).to(tl.int64)
    n_blocks = tl.cdiv(N, BM)
    if i_program <= n_blocks:
        prepare_rows(
            p_x + i_set * stride_x_b, p_x_stats + i_set * 3 * N, p_origin + i_set * D, stride_x_n, stride_x_d,
            i_program, n_blocks, N, N, D, METRIC, BM, BK,
        )  # fmt: skip
    else:
        prepare_rows(
            p_y + i_set * stride_y_b, p_y_stats + i_set * 3 * M, p_origin, stride_y_n, stride_y_d,
            i_program - n_blocks - 1, tl.cdiv(M, BM), M, M, D, METRIC, BM, BK,
        )  # fmt: skip


@triton.jit
def pairwise_fwd_kernel(
    p_x,
    p_x_stats,
    p_y,
    p_y_stats,
    p_origin,
    p_distances,
    N,
    M,
    D,
    stride_x_b,
    stride_x_n,
    stride_x_d,
    stride_y_b,
    stride_y_n,
    stride_y_d,
    METRIC: tl.constexpr,
    RAW: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Store a tile (BM, BM) of the distances (B, N, M): program (p, b) tile p of set b, column after column."""
    i_program = tl.program_id(0)
    i_set = tl.program_id(1).to(tl.int64)
    n_blocks = tl.cdiv(N, BM)
    o_i = ((i_program % n_blocks) * BM + tl.arange(0, BM)).to(tl.int64)
    o_j = ((i_program // n_blocks) * BM + tl.arange(0, BM)).to(tl.int64)
    m_i = o_i < N
    m_j = o_j < M
    b_scale_i, b_mean_i, b_unit_i = load_statistics(p_x_stats + i_set * 3 * N, o_i, m_i, N, METRIC)
    b_scale_j, b_mean_j, b_unit_j = load_statistics(p_y_stats + i_set * 3 * M, o_j, m_j, M, METRIC)
    b_d = distance_tile(
        p_x + i_set * stride_x_b, o_i * stride_x_n, stride_x_d, m_i, b_scale_i, b_mean_i, b_unit_i,
        p_y + i_set * stride_y_b, o_j * stride_y_n, stride_y_d, m_j, b_scale_j, b_mean_j, b_unit_j,
        p_origin + i_set * D, D, METRIC, RAW, BM, BM, BK, PRECISION,
    )  # fmt: skip
    p_tile = p_distances + i_set * N * M + (o_i * M)[:, None] + o_j[None, :]
    tl.store(p_tile, b_d, mask=m_i[:, None] & m_j[None, :])


@triton.jit
def pairwise_bwd_kernel(
    p_x,
    p_x_stats,
    p_y,
    p_y_stats,
    p_origin,
    p_distances,
    p_upstream,
    p_gradient,
    N,
    M,
    D,
    stride_x_b,
    stride_x_n,
    stride_x_d,
    stride_y_b,
    stride_y_n,
    stride_y_d,
    stride_d_b,
    stride_d_i,
    stride_d_j,
    stride_up_b,
    stride_up_i,
    stride_up_j,
    METRIC: tl.constexpr,
    RAW: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
):
    """Compute the gradient of a block of rows of x, BD of its columns, from distances and the gradient by them.

    Program (p, c, b) owns rows p * BM and on, and columns c * BD and on, of set b. SYMMETRIC: y is x, and the gradient
    by a pair comes from both of its places.
    """
    i_set = tl.program_id(2).to(tl.int64)
    o_i = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    o_d = tl.program_id(1) * BD + tl.arange(0, BD)
    m_i = o_i < N
    p_x += i_set * stride_x_b
    p_y += i_set * stride_y_b
    p_origin += i_set * D
    p_upstream += i_set * stride_up_b
    b_scale_i, b_mean_i, b_unit_i = load_statistics(p_x_stats + i_set * 3 * N, o_i, m_i, N, METRIC)
    b_sum = tl.zeros((BM, BD), tl.float32)
    b_total = tl.zeros((BM,), tl.float32)
    b_radial = tl.zeros((BM,), tl.float32)
    for j in range(0, M, BN):
        o_j = (j + tl.arange(0, BN)).to(tl.int64)
        m_j = o_j < M
        m_tile = m_i[:, None] & m_j[None, :]
        p_tile = p_distances + i_set * stride_d_b + (o_i * stride_d_i)[:, None] + (o_j * stride_d_j)[None, :]
        b_d = tl.load(p_tile, mask=m_tile, other=0.0)
        p_up = p_upstream + (o_i * stride_up_i)[:, None] + (o_j * stride_up_j)[None, :]
        b_c = tl.load(p_up, mask=m_tile, other=0.0).to(tl.float32)
        if SYMMETRIC:
            p_up = p_upstream + (o_j * stride_up_i)[:, None] + (o_i * stride_up_j)[None, :]
            b_c += tl.trans(tl.load(p_up, mask=m_j[:, None] & m_i[None, :], other=0.0).to(tl.float32))
        b_c = tl.where(m_tile, b_c * steepness(b_d, METRIC), 0.0)
        b_scale_j, b_mean_j, b_unit_j = load_statistics(p_y_stats + i_set * 3 * M, o_j, m_j, M, METRIC)
        b_c = as_multiplied(b_c, b_scale_j, b_unit_j, p_y, METRIC, RAW)
        b_total += tl.sum(b_c, 1)
        b_radial += tl.sum(b_c * b_d, 1)
        b_weights = factors(b_c, b_scale_j, b_unit_j, METRIC, RAW)
        b_sum = add_rows(
            b_sum, b_weights, p_y, o_j * stride_y_n, stride_y_d, o_d, m_j, b_scale_j, b_mean_j, b_unit_j,
            p_origin, D, METRIC, RAW, PRECISION,
        )  # fmt: skip
    b_gradient = row_gradient(
        b_sum, b_total, b_radial, p_x, o_i * stride_x_n, stride_x_d, o_d, m_i, b_scale_i, b_mean_i, b_unit_i,
        p_origin, D, METRIC, RAW,
    )  # fmt: skip
    p_gradient += i_set * N * D
    m_gradient = m_i[:, None] & (o_d < D)[None, :]
    b_gradient = rounded(b_gradient, p_gradient.dtype.element_ty)
    tl.store(p_gradient + (o_i * D)[:, None] + o_d[None, :], b_gradient, mask=m_gradient)
