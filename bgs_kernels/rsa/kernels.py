"""The device functions of the RSA correlation: the targets of a tile of pairs, the weighted moments of a tile, their
merge in float64, and the correlation with what its gradient needs.

The correlation of distances d with targets h depends on them only through W = sum w, the weighted means and the second
moments about them. A tile measures its own about its own rounded means, with what the rounding left (first moments
about them), so the merge of Chan, Golub and LeVeque (1979) is exact up to float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bgs_kernels.pairwise.kernels import ROUNDING, is_finite

COUNT = tl.constexpr(0)
WEIGHT = tl.constexpr(1)
MEAN_D = tl.constexpr(2)
MEAN_H = tl.constexpr(3)
FIRST_D = tl.constexpr(4)
FIRST_H = tl.constexpr(5)
SECOND_DD = tl.constexpr(6)
SECOND_HH = tl.constexpr(7)
SECOND_DH = tl.constexpr(8)
BAD = tl.constexpr(9)
MOMENTS = tl.constexpr(10)
"""The rows of a tile's moments: observed pairs, sum of weights, rounded weighted means of distances and targets,
weighted sums of what they differ from those, weighted sums of the squares and products of that, and whether a value
that counts is not finite."""


ABOVE = tl.constexpr(0)
BELOW = tl.constexpr(1)
CROSSING = tl.constexpr(2)
"""Where a tile (i, j) of pairs lies: on or above the diagonal with only i < j wanted, below it, or on it with both
wanted."""


@triton.jit
def load_pairs(p_pairs, o_i, o_j, stride_i, stride_j, m_i, m_j, PLACE):
    """Load a tile (i, j) of a matrix of which only the upper triangle is read. Offsets are int64."""
    if PLACE == ABOVE:
        p_tile = p_pairs + (o_i * stride_i)[:, None] + (o_j * stride_j)[None, :]
        b_pairs = tl.load(p_tile, mask=m_i[:, None] & m_j[None, :], other=0)
    elif PLACE == BELOW:  # the mirror image, read along the matrix's own rows and turned
        p_tile = p_pairs + (o_j * stride_i)[:, None] + (o_i * stride_j)[None, :]
        b_pairs = tl.trans(tl.load(p_tile, mask=m_j[:, None] & m_i[None, :], other=0))
    else:
        o_low = tl.minimum(o_i[:, None], o_j[None, :])
        o_high = tl.maximum(o_i[:, None], o_j[None, :])
        b_pairs = tl.load(p_pairs + o_low * stride_i + o_high * stride_j, mask=m_i[:, None] & m_j[None, :], other=0)
    return b_pairs


@triton.jit
def unobserved_as_nan(
    b_h,
    p_mask,
    stride_mask_i,
    stride_mask_j,
    p_weights,
    stride_weights_i,
    stride_weights_j,
    o_i,
    o_j,
    m_i,
    m_j,
    m_pairs,
    PLACE,
    HAS_MASK: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Make the targets of pairs that do not count NaN, and give the weights of the others (the targets themselves where
    all count the same). A tile is then two or three blocks of registers; a block of truth values would be one more."""
    b_h = tl.where(m_pairs, b_h, float("nan"))
    if HAS_MASK:
        b_mask = load_pairs(p_mask, o_i, o_j, stride_mask_i, stride_mask_j, m_i, m_j, PLACE)
        b_h = tl.where(b_mask != 0, b_h, float("nan"))
    b_weights = b_h
    if HAS_WEIGHTS:
        b_weights = load_pairs(p_weights, o_i, o_j, stride_weights_i, stride_weights_j, m_i, m_j, PLACE).to(tl.float32)
        b_h = tl.where(b_weights != 0, b_h, float("nan"))
    return b_h, b_weights


@triton.jit
def observed(b_values, b_h, b_weights, HAS_WEIGHTS: tl.constexpr):
    """Weight the values of a tile: 0 where the target is NaN."""
    if HAS_WEIGHTS:
        b_values = b_values * b_weights
    return tl.where(b_h == b_h, b_values, 0.0)


@triton.jit
def store_moments(p_moments, stride, b_d, b_h, b_weights, is_bad, HAS_WEIGHTS: tl.constexpr):
    """Store the moments of a tile of distances and targets.

    Args:
        p_moments: where the tile's COUNT goes; the others follow at ``stride``.
        b_d, b_h, b_weights: (BM, BN), the targets NaN where unobserved.
        is_bad: whether a distance or an observed target is not finite.
    """
    count = tl.sum(tl.where(b_h == b_h, 1.0, 0.0))
    weight = count
    if HAS_WEIGHTS:
        weight = tl.sum(observed(1.0, b_h, b_weights, True))
    share = 1.0 / tl.where(weight == 0, 1.0, weight)
    mean_d = tl.sum(observed(b_d, b_h, b_weights, HAS_WEIGHTS)) * share
    mean_h = tl.sum(observed(b_h, b_h, b_weights, HAS_WEIGHTS)) * share
    b_d = b_d - mean_d
    b_h = b_h - mean_h
    tl.store(p_moments + COUNT * stride, count)
    tl.store(p_moments + WEIGHT * stride, weight)
    tl.store(p_moments + MEAN_D * stride, mean_d)
    tl.store(p_moments + MEAN_H * stride, mean_h)
    tl.store(p_moments + FIRST_D * stride, tl.sum(observed(b_d, b_h, b_weights, HAS_WEIGHTS)))
    tl.store(p_moments + FIRST_H * stride, tl.sum(observed(b_h, b_h, b_weights, HAS_WEIGHTS)))
    tl.store(p_moments + SECOND_DD * stride, tl.sum(observed(b_d * b_d, b_h, b_weights, HAS_WEIGHTS)))
    tl.store(p_moments + SECOND_HH * stride, tl.sum(observed(b_h * b_h, b_h, b_weights, HAS_WEIGHTS)))
    tl.store(p_moments + SECOND_DH * stride, tl.sum(observed(b_d * b_h, b_h, b_weights, HAS_WEIGHTS)))
    tl.store(p_moments + BAD * stride, is_bad.to(tl.float32))


@triton.jit
def load_moment(p_moments, o_tiles, m_tiles):
    # past the first-level cache, which does not see what other programs wrote
    return tl.load(p_moments + o_tiles, mask=m_tiles, other=0.0, cache_modifier=".cg").to(tl.float64)


@triton.jit
def merge_moments(p_moments, stride, n_tiles, RSA: tl.constexpr, BT: tl.constexpr):
    """Merge the moments of tiles in float64 and in a fixed order.

    Returns:
        float64 scalars: observed pairs, weight, means of d and h, second moments dd, hh, dh about the means ("pearson")
        or about 0 ("cosine"), and how many tiles hold a value that is not finite.
    """
    b_zero = tl.zeros((BT,), tl.float64)
    b_count = b_zero
    b_weight = b_zero
    b_sum_d = b_zero
    b_sum_h = b_zero
    b_bad = b_zero
    for t in range(0, n_tiles, BT):
        o_t = t + tl.arange(0, BT)
        m_t = o_t < n_tiles
        b_w = load_moment(p_moments + WEIGHT * stride, o_t, m_t)
        b_weight += b_w
        b_count += load_moment(p_moments + COUNT * stride, o_t, m_t)
        b_bad += load_moment(p_moments + BAD * stride, o_t, m_t)
        b_sum_d += b_w * load_moment(p_moments + MEAN_D * stride, o_t, m_t)
        b_sum_d += load_moment(p_moments + FIRST_D * stride, o_t, m_t)
        b_sum_h += b_w * load_moment(p_moments + MEAN_H * stride, o_t, m_t)
        b_sum_h += load_moment(p_moments + FIRST_H * stride, o_t, m_t)
    weight = tl.sum(b_weight)
    share = 1.0 / tl.where(weight == 0, 1.0, weight)
    mean_d = tl.sum(b_sum_d) * share
    mean_h = tl.sum(b_sum_h) * share
    centre_d = mean_d * 0.0
    centre_h = mean_h * 0.0
    if RSA == "pearson":
        centre_d = mean_d
        centre_h = mean_h
    b_dd = b_zero
    b_hh = b_zero
    b_dh = b_zero
    for t in range(0, n_tiles, BT):
        o_t = t + tl.arange(0, BT)
        m_t = o_t < n_tiles
        b_w = load_moment(p_moments + WEIGHT * stride, o_t, m_t)
        b_d = load_moment(p_moments + MEAN_D * stride, o_t, m_t) - centre_d
        b_h = load_moment(p_moments + MEAN_H * stride, o_t, m_t) - centre_h
        b_first_d = load_moment(p_moments + FIRST_D * stride, o_t, m_t)
        b_first_h = load_moment(p_moments + FIRST_H * stride, o_t, m_t)
        b_dd += load_moment(p_moments + SECOND_DD * stride, o_t, m_t)
        b_dd += b_d * (2.0 * b_first_d + b_w * b_d)
        b_hh += load_moment(p_moments + SECOND_HH * stride, o_t, m_t)
        b_hh += b_h * (2.0 * b_first_h + b_w * b_h)
        b_dh += load_moment(p_moments + SECOND_DH * stride, o_t, m_t)
        b_dh += b_d * b_first_h + b_h * b_first_d + b_w * b_d * b_h
    return tl.sum(b_count), weight, mean_d, mean_h, tl.sum(b_dd), tl.sum(b_hh), tl.sum(b_dh), tl.sum(b_bad)


@triton.jit
def is_still(second, weight, mean, BOUNDED: tl.constexpr):
    """Say whether values do not vary, as ``bgs_kernels.rsa.reference.correlate`` defines it."""
    size = tl.abs(mean)
    if BOUNDED:
        size = tl.maximum(size, 1.0)
    floor = ROUNDING * size
    return second / tl.where(weight == 0, 1.0, weight) <= floor * floor


@triton.jit
def correlation(
    p_moments, stride, n_tiles, RSA: tl.constexpr, BOUNDED_D: tl.constexpr, BOUNDED_H: tl.constexpr, BT: tl.constexpr
):
    """Compute r from the moments of tiles, and the coefficients of its gradient.

    Returns:
        float64 scalars r, by_h, by_d, centre_d, centre_h: the derivative of r by d_ij is
        w_ij * (by_h * (h_ij - centre_h) + by_d * (d_ij - centre_d)). r and by_* are 0 where the correlation is not
        defined and NaN where a value is not finite.
    """
    count, weight, mean_d, mean_h, dd, hh, dh, bad = merge_moments(p_moments, stride, n_tiles, RSA, BT)
    undefined = is_still(dd, weight, mean_d, BOUNDED_D) | is_still(hh, weight, mean_h, BOUNDED_H) | (count < 2)
    spread_d = tl.sqrt(tl.where(undefined, 1.0, dd))
    spread_h = tl.sqrt(tl.where(undefined, 1.0, hh))
    spread = spread_d * spread_h
    poison = tl.where(bad > 0, float("nan"), 0.0)
    r = tl.where(undefined, 0.0, dh / spread) + poison
    by_h = tl.where(undefined, 0.0, 1.0 / spread) + poison
    by_d = -tl.where(undefined, 0.0, r / tl.where(undefined, 1.0, dd)) + poison
    if RSA == "pearson":
        return r, by_h, by_d, mean_d, mean_h
    else:
        return r, by_h, by_d, mean_d * 0.0, mean_h * 0.0


@triton.jit
def any_infinite(b_values):
    """Say whether a value is infinite; NaN is not."""
    return tl.max(tl.where(tl.abs(b_values) == float("inf"), 1, 0)) > 0


@triton.jit
def any_not_finite(b_values, m_values):
    """Say whether a value under the mask is not finite."""
    return tl.max(tl.where(m_values & ~is_finite(b_values), 1, 0)) > 0
