"""The Triton kernels of the triplet term: the losses of a block of triplets with what their gradient needs, and the
gradient of a row, gathered over the places where the row occurs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bgs_kernels.pairwise.kernels import is_finite, load_statistics, rounded, unit_rows

TRIPLET_WEIGHT = tl.constexpr(0)
TRIPLET_LOSS = tl.constexpr(1)
TRIPLET_RIGHT = tl.constexpr(2)
"""The rows of what a block of triplets sums: weights, weighted losses and weighted shares of right choices."""

SAME = tl.constexpr(2.0**-40)
"""Squared difference up to which two vectors of length one are the same: their entries are off by some units of
float32's 2**-24. Rows that are not scaled are as they were given, and their differences have no such error."""

FIXED_POINT = tl.constexpr(2.0**50)
"""Units per 1 of gradients that are summed as integers. Weights relative to their sum make every sum at most 1 for
shares that sum to 1, and leave room for shares that sum to some thousands."""


@triton.jit
def triplet_rows(p_triplets, stride_t, stride_c, o_t, m_t, COLUMN: tl.constexpr):
    return tl.load(p_triplets + o_t * stride_t + COLUMN * stride_c, mask=m_t, other=0).to(tl.int64)


@triton.jit
def one_of_three(p_x, stride_n, p_stats, o_n, m_t, n_rows, N, METRIC: tl.constexpr):
    """Give the offsets and statistics of one row of every triplet; padding rows are zero, rows out of range NaN."""
    m_inside = (o_n >= 0) & (o_n < N)
    m_n = m_t & m_inside & (o_n < n_rows)
    b_scale, b_mean, b_unit = load_statistics(p_stats, o_n, m_n, N, METRIC)
    return o_n * stride_n, m_n, b_scale, b_mean, tl.where(m_t & ~m_inside, float("nan"), b_unit)


@triton.jit
def distance_of_rows(b_squared, b_unit_x, b_unit_y, METRIC: tl.constexpr):
    """Turn summed squared differences (products under "dot") of pairs of rows into distances, NaN if not finite."""
    if METRIC == "dot":
        b_distances = -b_squared + (b_unit_x - 1.0) + (b_unit_y - 1.0)
    else:
        b_distances = b_squared
        if METRIC == "cosine" or METRIC == "correlation":
            b_distances = tl.where(b_squared <= SAME, 0.0, b_squared)
            b_distances += (b_unit_x == 0).to(tl.float32) + (b_unit_y == 0).to(tl.float32)
            b_distances = 0.5 * b_distances
        elif METRIC == "euclidean":
            b_distances = tl.sqrt_rn(b_distances)
    return tl.where(is_finite(b_distances), b_distances, float("nan"))


@triton.jit
def distances_of_triplets(
    p_x,
    p_stats,
    p_triplets,
    stride_n,
    stride_d,
    stride_t,
    stride_c,
    o_t,
    m_t,
    n_rows,
    N,
    D,
    METRIC: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute the distances ij, ik, jk (BT,) of a block of triplets from differences of their rows."""
    o_i = triplet_rows(p_triplets, stride_t, stride_c, o_t, m_t, 0)
    o_j = triplet_rows(p_triplets, stride_t, stride_c, o_t, m_t, 1)
    o_k = triplet_rows(p_triplets, stride_t, stride_c, o_t, m_t, 2)
    o_i, m_i, b_scale_i, b_mean_i, b_unit_i = one_of_three(p_x, stride_n, p_stats, o_i, m_t, n_rows, N, METRIC)
    o_j, m_j, b_scale_j, b_mean_j, b_unit_j = one_of_three(p_x, stride_n, p_stats, o_j, m_t, n_rows, N, METRIC)
    o_k, m_k, b_scale_k, b_mean_k, b_unit_k = one_of_three(p_x, stride_n, p_stats, o_k, m_t, n_rows, N, METRIC)
    b_ij = tl.zeros((BT, BK), tl.float32)
    b_ik = tl.zeros((BT, BK), tl.float32)
    b_jk = tl.zeros((BT, BK), tl.float32)
    for d in range(0, D, BK):
        o_d = d + tl.arange(0, BK)
        b_i = unit_rows(p_x, o_i, stride_d, o_d, m_i, D, b_scale_i, b_mean_i, b_unit_i)
        b_j = unit_rows(p_x, o_j, stride_d, o_d, m_j, D, b_scale_j, b_mean_j, b_unit_j)
        b_k = unit_rows(p_x, o_k, stride_d, o_d, m_k, D, b_scale_k, b_mean_k, b_unit_k)
        if METRIC == "dot":
            b_ij += b_i * b_j
            b_ik += b_i * b_k
            b_jk += b_j * b_k
        else:
            b_ij += (b_i - b_j) * (b_i - b_j)
            b_ik += (b_i - b_k) * (b_i - b_k)
            b_jk += (b_j - b_k) * (b_j - b_k)
    b_near = distance_of_rows(tl.sum(b_ij, 1), b_unit_i, b_unit_j, METRIC)
    b_far = distance_of_rows(tl.sum(b_ik, 1), b_unit_i, b_unit_k, METRIC)
    b_other = distance_of_rows(tl.sum(b_jk, 1), b_unit_j, b_unit_k, METRIC)
    return b_near, b_far, b_other


@triton.jit
def losses_of_triplets(
    b_near,
    b_far,
    b_other,
    p_targets,
    stride_targets_t,
    stride_targets_c,
    o_t,
    m_t,
    temperature,
    margin,
    FORM: tl.constexpr,
    HAS_TARGETS: tl.constexpr,
):
    """Compute the losses of triplets from their distances ij, ik, jk, their derivatives by those distances (times the
    temperature in the softmax form) and the shares of right choices, all (BT,)."""
    b_poison = 0.0 * (b_near + b_far + b_other)
    if FORM == "margin":
        b_hinge = b_near - b_far + margin
        b_steep = tl.where(b_hinge > 0, 1.0, 0.0)
        b_loss = tl.where(b_hinge > 0, b_hinge, 0.0) + b_poison
        b_by_near = b_steep + b_poison
        b_by_far = -b_steep + b_poison
        b_by_other = b_poison
    else:
        b_closest = tl.minimum(b_near, tl.minimum(b_far, b_other))
        b_s_near = (b_closest - b_near) / temperature
        b_s_far = (b_closest - b_far) / temperature
        b_s_other = (b_closest - b_other) / temperature
        b_e_near = tl.exp(b_s_near)
        b_e_far = tl.exp(b_s_far)
        b_e_other = tl.exp(b_s_other)
        b_all = b_e_near + b_e_far + b_e_other
        b_log = tl.log(b_all)
        b_q_near = tl.full(b_near.shape, 1.0, tl.float32)
        b_q_far = tl.zeros(b_near.shape, tl.float32)
        b_q_other = tl.zeros(b_near.shape, tl.float32)
        if HAS_TARGETS:
            p_q = p_targets + o_t * stride_targets_t
            b_q_near = tl.load(p_q, mask=m_t, other=0.0).to(tl.float32)
            b_q_far = tl.load(p_q + stride_targets_c, mask=m_t, other=0.0).to(tl.float32)
            b_q_other = tl.load(p_q + 2 * stride_targets_c, mask=m_t, other=0.0).to(tl.float32)
            b_loss = b_q_near * (b_log - b_s_near) + b_q_far * (b_log - b_s_far) + b_q_other * (b_log - b_s_other)
        else:
            b_loss = b_log - b_s_near
        b_share = (b_q_near + b_q_far + b_q_other) / b_all
        b_by_near = b_q_near - b_share * b_e_near
        b_by_far = b_q_far - b_share * b_e_far
        b_by_other = b_q_other - b_share * b_e_other
        if not HAS_TARGETS:  # 1 - share cancels where the choice is nearly certain
            b_by_near = (b_e_far + b_e_other) / b_all
        b_loss += b_poison
    b_closest = tl.minimum(b_near, tl.minimum(b_far, b_other))
    b_tied = (b_near == b_closest).to(tl.float32) + (b_far == b_closest).to(tl.float32)
    b_tied += (b_other == b_closest).to(tl.float32)
    b_right = tl.where(b_near == b_closest, 1.0 / tl.maximum(b_tied, 1.0), 0.0) + b_poison
    return b_loss, b_right, b_by_near, b_by_far, b_by_other


@triton.jit
def add_fixed_point(p_pairs, N, o_a, o_b, b_value, m_t):
    """Add to the entries (a, b) of an upper triangle as integers, which gives the same sum in any order."""
    o_pair = tl.minimum(o_a, o_b) * N + tl.maximum(o_a, o_b)
    b_units = (b_value.to(tl.float64) * FIXED_POINT).to(tl.int64)
    m_pair = m_t & (b_value != 0) & is_finite(b_value)
    tl.atomic_add(p_pairs + o_pair, b_units, mask=m_pair, sem="relaxed")


@triton.jit
def triplet_bwd_kernel(
    p_x,
    p_stats,
    p_triplets,
    p_by_distance,
    p_places,
    p_starts,
    p_lengths,
    p_slopes,
    p_upstream,
    p_gradient,
    row_first,
    N,
    D,
    T,
    stride_x_b,
    stride_x_n,
    stride_x_d,
    stride_t_b,
    stride_t_t,
    stride_t_c,
    stride_p_b,
    stride_s_b,
    stride_slopes,
    stride_up_b,
    stride_g_b,
    stride_g_n,
    METRIC: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    BE: tl.constexpr,
    BD: tl.constexpr,
):
    """Compute the gradient of the triplet term by one row: the sum over the places where the row occurs, in order.

    A program owns row ``row_first + program_id(0)`` of set ``program_id(1)``, whose gradient (D,) it writes once.
    """
    i_row = tl.program_id(0).to(tl.int64)
    i_set = tl.program_id(1).to(tl.int64)
    o_row = row_first + i_row + tl.zeros((1,), tl.int64)
    n_rows = N
    if HAS_LENGTHS:
        n_rows = tl.load(p_lengths + i_set).to(tl.int32)
    p_x += i_set * stride_x_b
    p_stats += i_set * 3 * N
    p_triplets += i_set * stride_t_b
    p_by_distance += i_set * 3 * T
    p_places += i_set * stride_p_b
    p_starts += i_set * stride_s_b
    first = tl.load(p_starts + row_first + i_row)
    last = tl.load(p_starts + row_first + i_row + 1)
    if (row_first + i_row) >= n_rows:
        last = first
    o_d = tl.arange(0, BD)
    m_row = o_row < n_rows
    b_scale, b_mean, b_unit = load_statistics(p_stats, o_row, m_row, N, METRIC)
    b_row = unit_rows(p_x, o_row * stride_x_n, stride_x_d, o_d, m_row, D, b_scale, b_mean, b_unit)  # (1, BD)
    b_sum = tl.zeros((1, BD), tl.float32)
    for e in range(first, last, BE):
        o_e = e + tl.arange(0, BE)
        m_e = o_e < last
        o_place = tl.load(p_places + o_e, mask=m_e, other=0).to(tl.int64)
        o_t = o_place // 3
        i_column = o_place % 3
        for turn in tl.static_range(1, 3):
            i_other = (i_column + turn) % 3
            o_other = tl.load(p_triplets + o_t * stride_t_t + i_other * stride_t_c, mask=m_e, other=0)
            # the pairs ij, ik, jk of the columns 0, 1, 2 are numbered by the sum of two columns less 1
            b_c = tl.load(p_by_distance + o_t * 3 + i_column + i_other - 1, mask=m_e, other=0.0)
            m_other = m_e & (o_other >= 0) & (o_other < n_rows)
            o_other = o_other.to(tl.int64)
            b_scale_o, b_mean_o, b_unit_o = load_statistics(p_stats, o_other, m_other, N, METRIC)
            b_u = unit_rows(p_x, o_other * stride_x_n, stride_x_d, o_d, m_other, D, b_scale_o, b_mean_o, b_unit_o)
            if METRIC != "dot":
                b_u = b_row - b_u
            b_sum += tl.sum(tl.where(m_e[:, None], b_c[:, None] * b_u, 0.0), 0)[None, :]
    if METRIC == "cosine" or METRIC == "correlation":  # back through the scaling to length one
        b_sum = (b_sum - tl.sum(b_row * b_sum) * b_row) * b_unit[:, None] * b_scale[:, None]
    slope = tl.load(p_slopes + i_set * stride_slopes) * tl.load(p_upstream + i_set * stride_up_b).to(tl.float32)
    b_gradient = tl.where(m_row[:, None], b_sum * slope, 0.0)
    p_row = p_gradient + i_set * stride_g_b + i_row * stride_g_n
    tl.store(p_row + o_d[None, :], rounded(b_gradient, p_gradient.dtype.element_ty), mask=(o_d < D)[None, :])
