"""The Triton kernels of the hybrid loss.

Forward, two launches: ``hybrid_rows_kernel`` reads every row once for what the tiles need to know of it;
``hybrid_fwd_kernel`` computes the tiles of the upper triangle of the distances, of which only moments leave the
registers, and blocks of triplets, and its last program to finish combines them. Backward, one launch or two:
``pairs_bwd_kernel`` recomputes the tiles of a block of rows and writes the rows' gradient; that of the triplets has
come to it through an N x N matrix of integers or was written before by
``bgs_kernels.triplet.kernels.triplet_bwd_kernel``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bgs_kernels.pairwise.kernels import (
    add_rows,
    as_multiplied,
    distance_tile,
    factors,
    is_bounded,
    load_statistics,
    prepare_rows,
    rounded,
    row_gradient,
    steepness,
)
from bgs_kernels.rsa.kernels import (
    ABOVE,
    BELOW,
    CROSSING,
    MOMENTS,
    any_infinite,
    any_not_finite,
    correlation,
    load_moment,
    load_pairs,
    observed,
    store_moments,
    unobserved_as_nan,
)
from bgs_kernels.triplet.kernels import (
    FIXED_POINT,
    TRIPLET_LOSS,
    TRIPLET_RIGHT,
    TRIPLET_WEIGHT,
    add_fixed_point,
    distances_of_triplets,
    losses_of_triplets,
    triplet_rows,
)

BY_H = tl.constexpr(0)
BY_D = tl.constexpr(1)
CENTRE_D = tl.constexpr(2)
CENTRE_H = tl.constexpr(3)
BY_TRIPLET = tl.constexpr(4)
SLOPES = tl.constexpr(8)
"""The columns of a set's slopes, what the backward needs to know of the whole set: the derivative of the loss by d_ij
through the correlation is w_ij * (BY_H * (h_ij - CENTRE_H) + BY_D * (d_ij - CENTRE_D)), and derivatives of triplets are
scaled by BY_TRIPLET."""

CLEAR = tl.constexpr(1024)


@triton.jit
def rows_of_set(p_lengths, i_set, N, HAS_LENGTHS: tl.constexpr):
    if HAS_LENGTHS:
        return tl.load(p_lengths + i_set).to(tl.int32)
    else:
        return N


@triton.jit
def hybrid_rows_kernel(
    p_x,
    p_x_stats,
    p_x_origin,
    p_y,
    p_y_stats,
    p_y_origin,
    p_lengths,
    p_tickets,
    p_pair_sums,
    p_triplet_weights,
    p_weight_sums,
    N,
    D,
    E,
    T,
    stride_x_b,
    stride_x_n,
    stride_x_d,
    stride_y_b,
    stride_y_n,
    stride_y_d,
    stride_w_b,
    stride_w_t,
    METRIC: tl.constexpr,
    TARGET_METRIC: tl.constexpr,
    TARGET: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    PAIR_SUMS: tl.constexpr,
    HAS_TRIPLET_WEIGHTS: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Store the statistics and the origin of the rows of x and of target rows y, and clear what is added to later.

    Program (p, b) serves set b: p up to cdiv(N, BM) rows of x and then their origin, the same number again y.
    """
    i_program = tl.program_id(0)
    i_set = tl.program_id(1).to(tl.int64)
    n_rows = rows_of_set(p_lengths, i_set, N, HAS_LENGTHS)
    n_blocks = tl.cdiv(N, BM)
    if i_program <= n_blocks:
        prepare_rows(
            p_x + i_set * stride_x_b, p_x_stats + i_set * 3 * N, p_x_origin + i_set * D, stride_x_n, stride_x_d,
            i_program, n_blocks, n_rows, N, D, METRIC, BM, BK,
        )  # fmt: skip
    elif TARGET == "rows":
        prepare_rows(
            p_y + i_set * stride_y_b, p_y_stats + i_set * 3 * N, p_y_origin + i_set * E, stride_y_n, stride_y_d,
            i_program - n_blocks - 1, n_blocks, n_rows, N, E, TARGET_METRIC, BM, BK,
        )  # fmt: skip
    if i_program == 0:
        tl.store(p_tickets + i_set, 0)
    if PAIR_SUMS:
        n_programs = tl.num_programs(0)
        p_pair_sums += i_set * N * N
        for o in range(i_program * CLEAR, N * N, n_programs * CLEAR):
            o_pairs = o + tl.arange(0, CLEAR)
            tl.store(p_pair_sums + o_pairs, tl.zeros((CLEAR,), tl.int64), mask=o_pairs < N * N)
        if HAS_TRIPLET_WEIGHTS:
            b_sum = tl.zeros((CLEAR,), tl.float64)
            for o in range(i_program * CLEAR, T, n_programs * CLEAR):
                o_t = o + tl.arange(0, CLEAR)
                p_w = p_triplet_weights + i_set * stride_w_b + o_t.to(tl.int64) * stride_w_t
                b_sum += tl.load(p_w, mask=o_t < T, other=0).to(tl.float32).to(tl.float64)
            tl.store(p_weight_sums + i_set * n_programs + i_program, tl.sum(b_sum))


@triton.jit
def upper_band(n_blocks, g, G):
    """Count the tiles before band g, a band being G rows of tiles from the diagonal on."""
    return G * (g * n_blocks - G * (g * (g - 1) // 2))


@triton.jit
def upper_tile(t, n_blocks, G):
    """Give the row and column of tile t: band after band, and column after column within a band, so that programs that
    run together share rows. A band begins with a square whose lower half is empty: there the row exceeds the column."""
    a = n_blocks + 0.5 * G
    g = ((a - tl.sqrt(tl.maximum(a * a - 2.0 * t, 0.0))) / G).to(tl.int32)
    while upper_band(n_blocks, g, G) > t:
        g -= 1
    while upper_band(n_blocks, g + 1, G) <= t:
        g += 1
    within = t - upper_band(n_blocks, g, G)
    return g * G + within % G, g * G + within // G


@triton.jit
def finish(
    p_moments,
    p_triplet_sums,
    p_losses,
    p_terms,
    p_slopes,
    i_set,
    n_sets,
    n_tiles,
    n_triplet_blocks,
    alpha,
    beta,
    temperature,
    METRIC: tl.constexpr,
    TARGET_METRIC: tl.constexpr,
    TARGET: tl.constexpr,
    RSA: tl.constexpr,
    FORM: tl.constexpr,
    PAIR_SUMS: tl.constexpr,
    HAS_BETA: tl.constexpr,
    BC: tl.constexpr,
):
    """Combine what the programs of a set stored, write its loss, its terms (triplet, r, accuracy) and its slopes."""
    b_weight = tl.zeros((BC,), tl.float64)
    b_loss = tl.zeros((BC,), tl.float64)
    b_right = tl.zeros((BC,), tl.float64)
    for o in range(0, n_triplet_blocks, BC):
        o_b = o + tl.arange(0, BC)
        m_b = o_b < n_triplet_blocks
        b_weight += load_moment(p_triplet_sums + TRIPLET_WEIGHT * n_triplet_blocks, o_b, m_b)
        b_loss += load_moment(p_triplet_sums + TRIPLET_LOSS * n_triplet_blocks, o_b, m_b)
        b_right += load_moment(p_triplet_sums + TRIPLET_RIGHT * n_triplet_blocks, o_b, m_b)
    weight = tl.sum(b_weight)
    share = 1.0 / tl.where(weight == 0, 1.0, weight)
    triplet = tl.sum(b_loss) * share
    accuracy = tl.where(weight == 0, float("nan"), tl.sum(b_right) * share)
    by_triplet = alpha * share
    if PAIR_SUMS:  # they are relative to the weight already, and cannot hold what is not finite
        by_triplet = alpha + 0.0 * triplet
    if FORM == "softmax":
        by_triplet = by_triplet / temperature
    loss = alpha * triplet
    r = tl.full((), float("nan"), tl.float64)
    p_slopes += i_set * SLOPES
    if TARGET == "none" or not HAS_BETA:  # no part of an output is left to chance
        for slope in tl.static_range(0, BY_TRIPLET):
            tl.store(p_slopes + slope, 0.0)
    for slope in tl.static_range(BY_TRIPLET + 1, SLOPES):
        tl.store(p_slopes + slope, 0.0)
    if TARGET != "none":
        r, by_h, by_d, centre_d, centre_h = correlation(
            p_moments, n_tiles, n_tiles, RSA, is_bounded(METRIC), TARGET == "rows" and is_bounded(TARGET_METRIC), BC
        )
        if HAS_BETA:
            loss = loss - beta * r
            tl.store(p_slopes + BY_H, (-beta * by_h).to(tl.float32))
            tl.store(p_slopes + BY_D, (-beta * by_d).to(tl.float32))
            tl.store(p_slopes + CENTRE_D, centre_d.to(tl.float32))
            tl.store(p_slopes + CENTRE_H, centre_h.to(tl.float32))
    tl.store(p_slopes + BY_TRIPLET, by_triplet.to(tl.float32))
    tl.store(p_losses + i_set, loss.to(tl.float32))
    tl.store(p_terms + i_set, triplet.to(tl.float32))
    tl.store(p_terms + n_sets + i_set, r.to(tl.float32))
    tl.store(p_terms + 2 * n_sets + i_set, accuracy.to(tl.float32))


@triton.jit
def hybrid_finish_kernel(
    p_moments,
    p_triplet_sums,
    p_losses,
    p_terms,
    p_slopes,
    n_tiles,
    n_triplet_blocks,
    alpha,
    beta,
    temperature,
    METRIC: tl.constexpr,
    TARGET_METRIC: tl.constexpr,
    TARGET: tl.constexpr,
    RSA: tl.constexpr,
    FORM: tl.constexpr,
    PAIR_SUMS: tl.constexpr,
    HAS_BETA: tl.constexpr,
    BC: tl.constexpr,
):
    """Finish sets whose tiles were computed by several launches, those of other ranks for example."""
    i_set = tl.program_id(0).to(tl.int64)
    finish(
        p_moments + i_set * MOMENTS * n_tiles, p_triplet_sums + i_set * 3 * n_triplet_blocks,
        p_losses, p_terms, p_slopes, i_set, tl.num_programs(0), n_tiles, n_triplet_blocks, alpha, beta, temperature,
        METRIC, TARGET_METRIC, TARGET, RSA, FORM, PAIR_SUMS, HAS_BETA, BC,
    )  # fmt: skip


@triton.jit
def hybrid_fwd_kernel(
    p_x,
    p_x_stats,
    p_x_origin,
    p_y,
    p_y_stats,
    p_y_origin,
    p_target,
    p_mask,
    p_weights,
    p_triplets,
    p_triplet_weights,
    p_triplet_targets,
    p_lengths,
    p_moments,
    p_triplet_sums,
    p_tickets,
    p_by_distance,
    p_pair_sums,
    p_weight_sums,
    p_losses,
    p_terms,
    p_slopes,
    N,
    D,
    E,
    T,
    n_tiles,
    n_triplet_blocks,
    n_weight_sums,
    tile_first,
    tile_last,
    band,
    alpha,
    beta,
    temperature,
    margin,
    stride_x_b,
    stride_x_n,
    stride_x_d,
    stride_y_b,
    stride_y_n,
    stride_y_d,
    stride_h_b,
    stride_h_i,
    stride_h_j,
    stride_m_b,
    stride_m_i,
    stride_m_j,
    stride_v_b,
    stride_v_i,
    stride_v_j,
    stride_t_b,
    stride_t_t,
    stride_t_c,
    stride_w_b,
    stride_w_t,
    stride_q_b,
    stride_q_t,
    stride_q_c,
    METRIC: tl.constexpr,
    TARGET_METRIC: tl.constexpr,
    TARGET: tl.constexpr,
    RSA: tl.constexpr,
    FORM: tl.constexpr,
    RAW: tl.constexpr,
    RAW_TARGET: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_TRIPLETS: tl.constexpr,
    HAS_TRIPLET_WEIGHTS: tl.constexpr,
    HAS_TRIPLET_TARGETS: tl.constexpr,
    HAS_BETA: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    PAIR_SUMS: tl.constexpr,
    FINISH: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
):
    """Compute the terms of every set: program (p, b) a tile of pairs (p < n_tiles) or a block of triplets of set b.

    The tiles are those from tile_first on of the tile_last that there are; the share of a rank may reach past the last.
    """
    i_program = tl.program_id(0)
    i_set = tl.program_id(1).to(tl.int64)
    n_rows = rows_of_set(p_lengths, i_set, N, HAS_LENGTHS)
    p_x += i_set * stride_x_b
    p_x_stats += i_set * 3 * N
    p_x_origin += i_set * D
    p_moments += i_set * MOMENTS * n_tiles
    p_triplet_sums += i_set * 3 * n_triplet_blocks
    if TARGET != "none":
        if i_program < n_tiles:
            n_blocks = tl.cdiv(N, BM)
            t = tile_first + i_program
            i_tile, j_tile = upper_tile(tl.minimum(t, tile_last - 1), n_blocks, band)
            o_i = (i_tile * BM + tl.arange(0, BM)).to(tl.int64)
            o_j = (j_tile * BM + tl.arange(0, BM)).to(tl.int64)
            m_i = o_i < n_rows
            m_j = o_j < n_rows
            if (i_tile <= j_tile) & (j_tile * BM < n_rows) & (t < tile_last):
                b_scale_i, b_mean_i, b_unit_i = load_statistics(p_x_stats, o_i, m_i, N, METRIC)
                b_scale_j, b_mean_j, b_unit_j = load_statistics(p_x_stats, o_j, m_j, N, METRIC)
                b_d = distance_tile(
                    p_x, o_i * stride_x_n, stride_x_d, m_i, b_scale_i, b_mean_i, b_unit_i,
                    p_x, o_j * stride_x_n, stride_x_d, m_j, b_scale_j, b_mean_j, b_unit_j,
                    p_x_origin, D, METRIC, RAW, BM, BM, BK, PRECISION,
                )  # fmt: skip
                m_real = m_i[:, None] & m_j[None, :]
                # the diagonal too: a single row that is not finite has no other pair
                is_bad = any_not_finite(b_d, m_real & (o_i[:, None] <= o_j[None, :]))
                if TARGET == "rows":
                    p_y_stats += i_set * 3 * N
                    b_scale_i, b_mean_i, b_unit_i = load_statistics(p_y_stats, o_i, m_i, N, TARGET_METRIC)
                    b_scale_j, b_mean_j, b_unit_j = load_statistics(p_y_stats, o_j, m_j, N, TARGET_METRIC)
                    p_y += i_set * stride_y_b
                    b_h = distance_tile(
                        p_y, o_i * stride_y_n, stride_y_d, m_i, b_scale_i, b_mean_i, b_unit_i,
                        p_y, o_j * stride_y_n, stride_y_d, m_j, b_scale_j, b_mean_j, b_unit_j,
                        p_y_origin + i_set * E, E, TARGET_METRIC, RAW_TARGET, BM, BM, BK, PRECISION,
                    )  # fmt: skip
                    b_h = tl.where(b_h == b_h, b_h, float("inf"))  # computed, NaN is an error and not a gap
                else:
                    b_h = load_pairs(
                        p_target + i_set * stride_h_b, o_i, o_j, stride_h_i, stride_h_j, m_i, m_j, ABOVE
                    ).to(tl.float32)
                b_h, b_weights = unobserved_as_nan(
                    b_h, p_mask + i_set * stride_m_b, stride_m_i, stride_m_j,
                    p_weights + i_set * stride_v_b, stride_v_i, stride_v_j,
                    o_i, o_j, m_i, m_j, m_real & (o_i[:, None] < o_j[None, :]), ABOVE, HAS_MASK, HAS_WEIGHTS,
                )  # fmt: skip
                is_bad = is_bad | any_infinite(b_h)
                store_moments(p_moments + i_program, n_tiles, b_d, b_h, b_weights, is_bad, HAS_WEIGHTS)
            else:
                for moment in tl.static_range(MOMENTS):
                    tl.store(p_moments + moment * n_tiles + i_program, 0.0)
    if HAS_TRIPLETS:
        if i_program >= n_tiles:
            i_block = i_program - n_tiles
            o_t = i_block.to(tl.int64) * BT + tl.arange(0, BT)
            m_t = o_t < T
            p_triplets += i_set * stride_t_b
            b_near, b_far, b_other = distances_of_triplets(
                p_x, p_x_stats, p_triplets, stride_x_n, stride_x_d, stride_t_t, stride_t_c,
                o_t, m_t, n_rows, N, D, METRIC, BT, BD,
            )  # fmt: skip
            b_loss, b_right, b_by_near, b_by_far, b_by_other = losses_of_triplets(
                b_near, b_far, b_other, p_triplet_targets + i_set * stride_q_b, stride_q_t, stride_q_c,
                o_t, m_t, temperature, margin, FORM, HAS_TRIPLET_TARGETS,
            )  # fmt: skip
            b_weight = tl.where(m_t, 1.0, 0.0)
            if HAS_TRIPLET_WEIGHTS:
                p_w = p_triplet_weights + i_set * stride_w_b + o_t * stride_w_t
                b_weight = tl.load(p_w, mask=m_t, other=0).to(tl.float32)
            p_sums = p_triplet_sums + i_block
            tl.store(p_sums + TRIPLET_WEIGHT * n_triplet_blocks, tl.sum(b_weight))
            tl.store(p_sums + TRIPLET_LOSS * n_triplet_blocks, tl.sum(tl.where(m_t, b_weight * b_loss, 0.0)))
            tl.store(p_sums + TRIPLET_RIGHT * n_triplet_blocks, tl.sum(tl.where(m_t, b_weight * b_right, 0.0)))
            if WITH_GRADIENT:
                if PAIR_SUMS:
                    total = T * 1.0
                    if HAS_TRIPLET_WEIGHTS:
                        b_sums = tl.zeros((BC,), tl.float64)
                        for o in range(0, n_weight_sums, BC):
                            o_w = o + tl.arange(0, BC)
                            b_sums += tl.load(
                                p_weight_sums + i_set * n_weight_sums + o_w, mask=o_w < n_weight_sums, other=0.0
                            )
                        total = tl.sum(b_sums).to(tl.float32)
                    b_weight = b_weight / tl.where(total == 0, 1.0, total)
                    p_pair_sums += i_set * N * N
                    o_i = triplet_rows(p_triplets, stride_t_t, stride_t_c, o_t, m_t, 0)
                    o_j = triplet_rows(p_triplets, stride_t_t, stride_t_c, o_t, m_t, 1)
                    o_k = triplet_rows(p_triplets, stride_t_t, stride_t_c, o_t, m_t, 2)
                    add_fixed_point(p_pair_sums, N, o_i, o_j, b_weight * b_by_near, m_t)
                    add_fixed_point(p_pair_sums, N, o_i, o_k, b_weight * b_by_far, m_t)
                    add_fixed_point(p_pair_sums, N, o_j, o_k, b_weight * b_by_other, m_t)
                else:
                    p_by = p_by_distance + (i_set * T + o_t) * 3
                    tl.store(p_by, b_weight * b_by_near * steepness(b_near, METRIC), mask=m_t)
                    tl.store(p_by + 1, b_weight * b_by_far * steepness(b_far, METRIC), mask=m_t)
                    tl.store(p_by + 2, b_weight * b_by_other * steepness(b_other, METRIC), mask=m_t)
    if FINISH:
        tl.debug_barrier()  # all of this program's stores come before its ticket
        ticket = tl.atomic_add(p_tickets + i_set, 1, sem="acq_rel")
        if ticket == tl.num_programs(0) - 1:
            finish(
                p_moments, p_triplet_sums, p_losses, p_terms, p_slopes, i_set, tl.num_programs(1),
                n_tiles, n_triplet_blocks, alpha, beta, temperature,
                METRIC, TARGET_METRIC, TARGET, RSA, FORM, PAIR_SUMS, HAS_BETA, BC,
            )  # fmt: skip


@triton.jit
def pair_derivatives(
    p_x,
    p_x_stats,
    p_x_origin,
    p_y,
    p_y_stats,
    p_y_origin,
    p_target,
    p_mask,
    p_weights,
    p_pair_sums,
    p_slopes,
    upstream,
    i_first,
    j_first,
    o_i,
    o_j,
    m_i,
    m_j,
    b_scale_i,
    b_mean_i,
    b_unit_i,
    b_scale_j,
    b_mean_j,
    b_unit_j,
    N,
    D,
    E,
    stride_x_n,
    stride_x_d,
    stride_y_n,
    stride_y_d,
    stride_h_i,
    stride_h_j,
    stride_m_i,
    stride_m_j,
    stride_v_i,
    stride_v_j,
    METRIC: tl.constexpr,
    TARGET_METRIC: tl.constexpr,
    TARGET: tl.constexpr,
    RAW: tl.constexpr,
    RAW_TARGET: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    PAIR_SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Recompute a tile (BM, BN) of distances and give the derivatives c of the loss by them, times ``steepness``, both
    (BM, BN); c is 0 on the diagonal and outside the rows."""
    b_d = distance_tile(
        p_x, o_i * stride_x_n, stride_x_d, m_i, b_scale_i, b_mean_i, b_unit_i,
        p_x, o_j * stride_x_n, stride_x_d, m_j, b_scale_j, b_mean_j, b_unit_j,
        p_x_origin, D, METRIC, RAW, BM, BN, BK, PRECISION,
    )  # fmt: skip
    place = tl.where(j_first >= i_first + BM, ABOVE, tl.where(j_first + BN <= i_first, BELOW, CROSSING))
    m_pairs = m_i[:, None] & m_j[None, :] & (o_i[:, None] != o_j[None, :])
    b_c = tl.zeros((BM, BN), tl.float32)
    if TARGET != "none":
        if TARGET == "rows":
            b_scale_hi, b_mean_hi, b_unit_hi = load_statistics(p_y_stats, o_i, m_i, N, TARGET_METRIC)
            b_scale_hj, b_mean_hj, b_unit_hj = load_statistics(p_y_stats, o_j, m_j, N, TARGET_METRIC)
            b_h = distance_tile(
                p_y, o_i * stride_y_n, stride_y_d, m_i, b_scale_hi, b_mean_hi, b_unit_hi,
                p_y, o_j * stride_y_n, stride_y_d, m_j, b_scale_hj, b_mean_hj, b_unit_hj,
                p_y_origin, E, TARGET_METRIC, RAW_TARGET, BM, BN, BK, PRECISION,
            )  # fmt: skip
            b_h = tl.where(b_h == b_h, b_h, float("inf"))
        else:
            b_h = load_pairs(p_target, o_i, o_j, stride_h_i, stride_h_j, m_i, m_j, place).to(tl.float32)
        b_h, b_weights = unobserved_as_nan(
            b_h, p_mask, stride_m_i, stride_m_j, p_weights, stride_v_i, stride_v_j,
            o_i, o_j, m_i, m_j, m_pairs, place, HAS_MASK, HAS_WEIGHTS,
        )  # fmt: skip
        by_h = tl.load(p_slopes + BY_H) * upstream
        by_d = tl.load(p_slopes + BY_D) * upstream
        b_c = by_h * (b_h - tl.load(p_slopes + CENTRE_H)) + by_d * (b_d - tl.load(p_slopes + CENTRE_D))
        b_c = observed(b_c, b_h, b_weights, HAS_WEIGHTS)
    if PAIR_SUMS:
        by_triplet = tl.load(p_slopes + BY_TRIPLET) * upstream / FIXED_POINT
        b_c += load_pairs(p_pair_sums, o_i, o_j, N, 1, m_i, m_j, place).to(tl.float32) * by_triplet
    b_c = tl.where(m_pairs, b_c * steepness(b_d, METRIC), 0.0)
    return as_multiplied(b_c, b_scale_j, b_unit_j, p_x, METRIC, RAW), b_d


@triton.jit
def store_gradient(
    p_gradient,
    o_i,
    o_d,
    m_i,
    b_sum,
    b_total,
    b_radial,
    p_x,
    p_x_origin,
    b_scale_i,
    b_mean_i,
    b_unit_i,
    row_first,
    row_last,
    D,
    stride_x_n,
    stride_x_d,
    stride_g_n,
    METRIC: tl.constexpr,
    RAW: tl.constexpr,
    ADD: tl.constexpr,
):
    """Store the gradient (BM, columns) of a block of rows, or add it to what stands there."""
    b_gradient = row_gradient(
        b_sum, b_total, b_radial, p_x, o_i * stride_x_n, stride_x_d, o_d, m_i, b_scale_i, b_mean_i, b_unit_i,
        p_x_origin, D, METRIC, RAW,
    )  # fmt: skip
    b_gradient = tl.where(m_i[:, None], b_gradient, 0.0)
    p_tile = p_gradient + ((o_i - row_first) * stride_g_n)[:, None] + o_d[None, :]
    m_tile = (o_i < row_last)[:, None] & (o_d < D)[None, :]
    if ADD:
        b_gradient += tl.load(p_tile, mask=m_tile, other=0.0).to(tl.float32)
    tl.store(p_tile, rounded(b_gradient, p_gradient.dtype.element_ty), mask=m_tile)


@triton.jit
def pairs_bwd_kernel(
    p_x,
    p_x_stats,
    p_x_origin,
    p_y,
    p_y_stats,
    p_y_origin,
    p_target,
    p_mask,
    p_weights,
    p_lengths,
    p_pair_sums,
    p_slopes,
    p_upstream,
    p_gradient,
    row_first,
    row_last,
    N,
    D,
    E,
    stride_x_b,
    stride_x_n,
    stride_x_d,
    stride_y_b,
    stride_y_n,
    stride_y_d,
    stride_h_b,
    stride_h_i,
    stride_h_j,
    stride_m_b,
    stride_m_i,
    stride_m_j,
    stride_v_b,
    stride_v_i,
    stride_v_j,
    stride_up_b,
    stride_g_b,
    stride_g_n,
    METRIC: tl.constexpr,
    TARGET_METRIC: tl.constexpr,
    TARGET: tl.constexpr,
    RAW: tl.constexpr,
    RAW_TARGET: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    PAIR_SUMS: tl.constexpr,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """Compute the gradient of a block of rows, BD of its columns: the sum over all pairs of each row, in order.

    Program (p, c, b) owns rows row_first + p * BM and on, up to row_last, and columns c * BD and on, of set b; it
    recomputes the distances of the rows to all others, whatever the columns. TARGET is "none" where the correlation has
    no part in the loss; PAIR_SUMS where the triplets' part is an N x N matrix, ADD where the gradient holds it already.
    """
    i_block = tl.program_id(0)
    i_chunk = tl.program_id(1)
    i_set = tl.program_id(2).to(tl.int64)
    n_rows = rows_of_set(p_lengths, i_set, N, HAS_LENGTHS)
    p_x += i_set * stride_x_b
    p_x_stats += i_set * 3 * N
    p_x_origin += i_set * D
    i_first = row_first + i_block * BM
    o_i = (i_first + tl.arange(0, BM)).to(tl.int64)
    m_i = o_i < n_rows
    b_scale_i, b_mean_i, b_unit_i = load_statistics(p_x_stats, o_i, m_i, N, METRIC)
    upstream = tl.load(p_upstream + i_set * stride_up_b).to(tl.float32)
    o_d = i_chunk * BD + tl.arange(0, BD)
    b_sum = tl.zeros((BM, BD), tl.float32)
    b_total = tl.zeros((BM,), tl.float32)
    b_radial = tl.zeros((BM,), tl.float32)
    for j in tl.range(0, n_rows, BN, num_stages=1):  # the pipeline is that of the loops inside
        o_j = (j + tl.arange(0, BN)).to(tl.int64)
        m_j = o_j < n_rows
        b_scale_j, b_mean_j, b_unit_j = load_statistics(p_x_stats, o_j, m_j, N, METRIC)
        b_c, b_d = pair_derivatives(
            p_x, p_x_stats, p_x_origin, p_y + i_set * stride_y_b, p_y_stats + i_set * 3 * N, p_y_origin + i_set * E,
            p_target + i_set * stride_h_b, p_mask + i_set * stride_m_b, p_weights + i_set * stride_v_b,
            p_pair_sums + i_set * N * N, p_slopes + i_set * SLOPES, upstream, i_first, j, o_i, o_j, m_i, m_j,
            b_scale_i, b_mean_i, b_unit_i, b_scale_j, b_mean_j, b_unit_j, N, D, E,
            stride_x_n, stride_x_d, stride_y_n, stride_y_d, stride_h_i, stride_h_j,
            stride_m_i, stride_m_j, stride_v_i, stride_v_j,
            METRIC, TARGET_METRIC, TARGET, RAW, RAW_TARGET, HAS_MASK, HAS_WEIGHTS, PAIR_SUMS, PRECISION, BM, BN, BK,
        )  # fmt: skip
        b_total += tl.sum(b_c, 1)
        b_radial += tl.sum(b_c * b_d, 1)
        b_sum = add_rows(
            b_sum, factors(b_c, b_scale_j, b_unit_j, METRIC, RAW), p_x, o_j * stride_x_n, stride_x_d, o_d, m_j,
            b_scale_j, b_mean_j, b_unit_j, p_x_origin, D, METRIC, RAW, PRECISION,
        )  # fmt: skip
    store_gradient(
        p_gradient + i_set * stride_g_b, o_i, o_d, m_i, b_sum, b_total, b_radial, p_x, p_x_origin,
        b_scale_i, b_mean_i, b_unit_i, row_first, row_last, D, stride_x_n, stride_x_d, stride_g_n, METRIC, RAW, ADD,
    )  # fmt: skip


@triton.jit
def pairs_bwd_panels_kernel(
    p_x,
    p_x_stats,
    p_x_origin,
    p_y,
    p_y_stats,
    p_y_origin,
    p_target,
    p_mask,
    p_weights,
    p_lengths,
    p_pair_sums,
    p_slopes,
    p_upstream,
    p_gradient,
    p_panels,
    p_sums,
    row_first,
    row_last,
    n_sets,
    N,
    D,
    E,
    stride_x_b,
    stride_x_n,
    stride_x_d,
    stride_y_b,
    stride_y_n,
    stride_y_d,
    stride_h_b,
    stride_h_i,
    stride_h_j,
    stride_m_b,
    stride_m_i,
    stride_m_j,
    stride_v_b,
    stride_v_i,
    stride_v_j,
    stride_up_b,
    stride_g_b,
    stride_g_n,
    METRIC: tl.constexpr,
    TARGET_METRIC: tl.constexpr,
    TARGET: tl.constexpr,
    RAW: tl.constexpr,
    RAW_TARGET: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    PAIR_SUMS: tl.constexpr,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PANEL: tl.constexpr,
):
    """Compute what ``pairs_bwd_kernel`` does for rows too wide to be kept in registers, without recomputing distances.

    A program takes one block of rows after another and, for each, one panel of PANEL other rows after another: it
    writes the derivatives of the panel to memory of its own, (BM, PANEL) at p_panels, which stay in the cache, and then
    adds the panel's rows, BD columns at a time, to sums (BM, D) at p_sums, of its own as well.
    """
    i_program = tl.program_id(0)
    n_blocks = tl.cdiv(row_last - row_first, BM)
    o_r = tl.arange(0, BM)
    o_c = tl.arange(0, BN)
    p_own = p_panels + i_program.to(tl.int64) * BM * PANEL
    p_own_sums = p_sums + i_program.to(tl.int64) * BM * D
    for i_work in range(i_program, n_blocks * n_sets, tl.num_programs(0)):
        i_set = (i_work // n_blocks).to(tl.int64)
        i_first = row_first + (i_work % n_blocks) * BM
        n_rows = rows_of_set(p_lengths, i_set, N, HAS_LENGTHS)
        p_x_set = p_x + i_set * stride_x_b
        p_stats = p_x_stats + i_set * 3 * N
        p_origin = p_x_origin + i_set * D
        o_i = (i_first + o_r).to(tl.int64)
        m_i = o_i < n_rows
        b_scale_i, b_mean_i, b_unit_i = load_statistics(p_stats, o_i, m_i, N, METRIC)
        upstream = tl.load(p_upstream + i_set * stride_up_b).to(tl.float32)
        b_total = tl.zeros((BM,), tl.float32)
        b_radial = tl.zeros((BM,), tl.float32)
        for panel in range(0, n_rows, PANEL):
            last = tl.minimum(panel + PANEL, n_rows)
            for j in tl.range(panel, last, BN, num_stages=1):
                o_j = (j + o_c).to(tl.int64)
                m_j = o_j < n_rows
                b_scale_j, b_mean_j, b_unit_j = load_statistics(p_stats, o_j, m_j, N, METRIC)
                b_c, b_d = pair_derivatives(
                    p_x_set, p_stats, p_origin,
                    p_y + i_set * stride_y_b, p_y_stats + i_set * 3 * N, p_y_origin + i_set * E,
                    p_target + i_set * stride_h_b, p_mask + i_set * stride_m_b, p_weights + i_set * stride_v_b,
                    p_pair_sums + i_set * N * N, p_slopes + i_set * SLOPES, upstream, i_first, j, o_i, o_j, m_i, m_j,
                    b_scale_i, b_mean_i, b_unit_i, b_scale_j, b_mean_j, b_unit_j, N, D, E,
                    stride_x_n, stride_x_d, stride_y_n, stride_y_d, stride_h_i, stride_h_j,
                    stride_m_i, stride_m_j, stride_v_i, stride_v_j,
                    METRIC, TARGET_METRIC, TARGET, RAW, RAW_TARGET, HAS_MASK, HAS_WEIGHTS, PAIR_SUMS, PRECISION,
                    BM, BN, BK,
                )  # fmt: skip
                b_total += tl.sum(b_c, 1)
                b_radial += tl.sum(b_c * b_d, 1)
                b_c = factors(b_c, b_scale_j, b_unit_j, METRIC, RAW)
                p_tile = p_own + o_r[:, None] * PANEL + (j - panel + o_c)[None, :]
                tl.store(p_tile, rounded(b_c, p_panels.dtype.element_ty))
            tl.debug_barrier()  # the panel is written before any thread reads it
            for d in range(0, D, BD):
                o_d = d + tl.arange(0, BD)
                p_sum = p_own_sums + (o_r * D)[:, None] + o_d[None, :]
                m_d = (o_d < D)[None, :]
                b_sum = tl.zeros((BM, BD), tl.float32)
                if panel > 0:
                    b_sum = tl.load(p_sum, mask=m_d, other=0.0)
                for j in range(panel, last, BN):
                    o_j = (j + o_c).to(tl.int64)
                    m_j = o_j < n_rows
                    b_scale_j, b_mean_j, b_unit_j = load_statistics(p_stats, o_j, m_j, N, METRIC)
                    b_c = tl.load(p_own + o_r[:, None] * PANEL + (j - panel + o_c)[None, :])
                    b_sum = add_rows(
                        b_sum, b_c, p_x_set, o_j * stride_x_n, stride_x_d, o_d, m_j, b_scale_j, b_mean_j, b_unit_j,
                        p_origin, D, METRIC, RAW, PRECISION,
                    )  # fmt: skip
                tl.store(p_sum, b_sum, mask=m_d)
            tl.debug_barrier()  # the panel is read before any thread writes the next
        for d in range(0, D, BK):
            o_d = d + tl.arange(0, BK)
            b_sum = tl.zeros((BM, BK), tl.float32)
            if n_rows > 0:  # a set of padding alone has no panel
                b_sum = tl.load(p_own_sums + (o_r * D)[:, None] + o_d[None, :], mask=(o_d < D)[None, :], other=0.0)
            store_gradient(
                p_gradient + i_set * stride_g_b, o_i, o_d, m_i, b_sum, b_total, b_radial, p_x_set, p_origin,
                b_scale_i, b_mean_i, b_unit_i, row_first, row_last, D, stride_x_n, stride_x_d, stride_g_n,
                METRIC, RAW, ADD,
            )  # fmt: skip
        tl.debug_barrier()  # the sums are read before any thread writes those of the next rows
