// The second phase: distances, targets and weights of all pairs above the diagonal, tile by tile, and the moments of
// every tile for the correlation.
#pragma once

#include "cuda/hybrid_small_shared.cuh"

namespace bgs::cuda {

// Rows of one set, as the first phase left them.
struct RowsOfSet {
  const float* units;
  const float* scales;
  const float* origin;  // in shared memory
  int pitch;
  Metric metric;
};

// Rows whose mean is the origin: with n of them distances lose 1/n of the precision that the mean of all rows gives.
constexpr int kSample = 16;

// Finds the origin of a set: the mean of the finite ones of some rows that are spread evenly over it. Distances do not
// depend on the origin, but what cancels in them does; products have none.
__device__ inline void find_origin(const float* units, int pitch, int n_rows, Metric metric, float* origin) {
  for (int column = threadIdx.x; column < pitch; column += kThreads) {
    float entries[kSample];
#pragma unroll
    for (int k = 0; k < kSample; ++k) {
      const std::int64_t row = static_cast<std::int64_t>(k) * n_rows / kSample;
      entries[k] = row < n_rows ? units[row * pitch + column] : not_a_number();
    }
    float sum = 0.0f, count = 0.0f;
#pragma unroll
    for (int k = 0; k < kSample; ++k) {
      if (is_finite(entries[k])) {
        sum += entries[k];
        count += 1.0f;
      }
    }
    const float mean = sum / fmaxf(count, 1.0f);
    origin[column] = metric != Metric::kDot && is_finite(mean) ? mean : 0.0f;  // one that overflows is no origin
  }
}

// Computes the distances of rows i_first and on to rows j_first and on, NaN beside a row that is not finite. Where all
// of them are padding there is nothing to multiply.
template <int kScale>
__device__ inline void distances_of_tile(const RowsOfSet& rows, int count, int i_first, int j_first, bool is_padding,
                                         Shared& shared, float (&distances)[kScale][kScale]) {
  constexpr int kTileDepth = kDepth / kScale, kPitch = kTileDepth + 4, kFours = kTileDepth / 4;
  constexpr int kLoads = kSide * kScale * kFours / kThreads;
  constexpr int kSplit = kSplitOf<kScale>;
  float sums[kScale][kScale] = {};
  float squares[2][kLoads] = {};
  Four next[2][kLoads];
  const auto load = [&](int k_first) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
#pragma unroll
      for (int l = 0; l < kLoads; ++l) {
        const int place = threadIdx.x + kThreads * l;
        const int row = (side == 0 ? i_first : j_first) + place / kFours, k = k_first + place % kFours * 4;
        Four entries = {};
        if (row < count && k < rows.pitch) {
          entries = *reinterpret_cast<const Four*>(rows.units + static_cast<std::int64_t>(row) * rows.pitch + k);
          const Four origin = *reinterpret_cast<const Four*>(rows.origin + k);
#pragma unroll
          for (int v = 0; v < 4; ++v) entries.v[v] -= origin.v[v];
        }
        next[side][l] = entries;
      }
    }
  };

  __syncthreads();  // the origin is there, and what a tile before this one left has been read
  const int depth = is_padding ? 0 : rows.pitch;
  if (depth > 0) load(0);
  for (int k_first = 0; k_first < depth; k_first += kTileDepth) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
#pragma unroll
      for (int l = 0; l < kLoads; ++l) {
        const int place = threadIdx.x + kThreads * l;
        const Four entries = next[side][l];
        *reinterpret_cast<Four*>(shared.panels[side] + place / kFours * kPitch + place % kFours * 4) = entries;
#pragma unroll
        for (int v = 0; v < 4; ++v) squares[side][l] += entries.v[v] * entries.v[v];
      }
    }
    __syncthreads();
    if (k_first + kTileDepth < depth) load(k_first + kTileDepth);
    const int fours = depth - k_first < kTileDepth ? (depth - k_first) / 4 : kFours;
    float products[kScale][kScale][kSplit] = {};  // of one panel: a sum of short sums is more precise than a long one
#pragma unroll kUnrollOf<kScale>
    for (int k = 0; k < fours; ++k) {
      Four a[kScale], b[kScale];
#pragma unroll
      for (int m = 0; m < kScale; ++m) {
        a[m] = *reinterpret_cast<const Four*>(shared.panels[0] + (thread_y() + kSide * m) * kPitch + 4 * k);
        b[m] = *reinterpret_cast<const Four*>(shared.panels[1] + (thread_x() + kSide * m) * kPitch + 4 * k);
      }
#pragma unroll
      for (int v = 0; v < 4; ++v) {
#pragma unroll
        for (int m = 0; m < kScale; ++m) {
#pragma unroll
          for (int n = 0; n < kScale; ++n) products[m][n][v % kSplit] += a[m].v[v] * b[n].v[v];
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kScale; ++m) {
#pragma unroll
      for (int n = 0; n < kScale; ++n) sums[m][n] += sum_of_split(products[m][n]);
    }
    __syncthreads();
  }

#pragma unroll
  for (int side = 0; side < 2; ++side) {
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      float size = sum_over_lanes<kFours>(squares[side][l]);
      const int in_tile = (threadIdx.x + kThreads * l) / kFours;
      const int row = (side == 0 ? i_first : j_first) + in_tile;
      // a row without direction is at distance 1
      if (row < count && is_bounded(rows.metric) && rows.scales[row] == 0.0f) size += 1.0f;
      if (threadIdx.x % kFours == 0) shared.sizes[side][in_tile] = size;
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kScale; ++m) {
#pragma unroll
    for (int n = 0; n < kScale; ++n) {
      const float product = sums[m][n];
      const float sizes = shared.sizes[0][thread_y() + kSide * m] + shared.sizes[1][thread_x() + kSide * n];
      float squared = sizes - 2.0f * product;
      if (squared < kRounding * sizes) squared = 0.0f;  // strictly: what overflowed is not less than itself
      switch (rows.metric) {
        case Metric::kDot: distances[m][n] = -product; break;
        case Metric::kSqeuclidean: distances[m][n] = squared; break;
        case Metric::kEuclidean: distances[m][n] = sqrtf(squared); break;
        default: distances[m][n] = 0.5f * squared;
      }
    }
  }
}

// Adds up a tile's moments and stores them. Targets are NaN where unobserved.
template <int kScale>
__device__ inline void store_moments(const float (&distances)[kScale][kScale], const float (&targets)[kScale][kScale],
                                     const float (&weights)[kScale][kScale], bool is_bad, double* moments, int stride,
                                     Shared& shared) {
  double sums[5] = {};
  double second[3] = {};
#pragma unroll
  for (int m = 0; m < kScale; ++m) {
#pragma unroll
    for (int n = 0; n < kScale; ++n) {
      const double d = distances[m][n], h = targets[m][n], w = weights[m][n];
      if (h == h) {
        sums[0] += 1.0;
        sums[1] += w;
        sums[2] += w * d;
        sums[3] += w * h;
      }
    }
  }
  sums[4] = is_bad ? 1.0 : 0.0;
  sum_over_block(sums, shared.sums);
  const double share = 1.0 / (sums[1] == 0.0 ? 1.0 : sums[1]);
  const double mean_d = sums[2] * share, mean_h = sums[3] * share;
#pragma unroll
  for (int m = 0; m < kScale; ++m) {
#pragma unroll
    for (int n = 0; n < kScale; ++n) {
      const double h = targets[m][n], w = weights[m][n];
      const double from_d = distances[m][n] - mean_d, from_h = h - mean_h;
      if (h == h) {
        second[0] += w * from_d * from_d;
        second[1] += w * from_h * from_h;
        second[2] += w * from_d * from_h;
      }
    }
  }
  sum_over_block(second, shared.sums);
  if (threadIdx.x == 0) {
    moments[kCount * stride] = sums[0];
    moments[kWeight * stride] = sums[1];
    moments[kSumD * stride] = sums[2];
    moments[kSumH * stride] = sums[3];
    moments[kSecondDD * stride] = second[0];
    moments[kSecondHH * stride] = second[1];
    moments[kSecondDH * stride] = second[2];
    moments[kBad * stride] = sums[4];
  }
}

// The block row and block column of a tile on or above the diagonal; tiles are numbered row by row.
struct TilePlace {
  int row, column;
};

__device__ inline TilePlace place_of_tile(int tile, int blocks) {
  int row = 0;
  while (tile >= blocks - row) tile -= blocks - row++;
  return {row, row + tile};
}

template <int kScale>
__device__ inline void pairs_of_tile(const HybridSmall& call, const HybridSmallPlan& plan, std::int64_t set, int tile,
                                     int n_rows, Shared& shared) {
  const int count = call.sizes.rows;
  const TilePlace place = place_of_tile(tile, plan.blocks);
  const int i_first = place.row * kSide * kScale, j_first = place.column * kSide * kScale;
  const bool is_padding = i_first >= n_rows;
  const std::int64_t of_set = set * count;
  float distances[kScale][kScale];
  const RowsOfSet rows{plan.units + of_set * plan.pitch, plan.scales + 2 * of_set, shared.origins[0], plan.pitch,
                       call.metric};
  distances_of_tile<kScale>(rows, count, i_first, j_first, is_padding, shared, distances);
  float* pairs = plan.pairs + of_set * plan.pair_pitch;
  bool is_bad = false;
#pragma unroll
  for (int m = 0; m < kScale; ++m) {
#pragma unroll
    for (int n = 0; n < kScale; ++n) {
      const int i = i_first + thread_y() + kSide * m, j = j_first + thread_x() + kSide * n;
      if (i < count && j < count) pairs[static_cast<std::int64_t>(i) * plan.pair_pitch + j] = distances[m][n];
      // the diagonal too: a single row that is not finite has no other pair
      is_bad |= i <= j && j < n_rows && !is_finite(distances[m][n]);
    }
  }
  if (!call.sizes.target) return;

  float targets[kScale][kScale], weights[kScale][kScale];
  if (call.sizes.target_columns > 0) {
    const RowsOfSet others{plan.target_units + of_set * plan.target_pitch, plan.target_scales + 2 * of_set,
                           shared.origins[1], plan.target_pitch, call.target_metric};
    distances_of_tile<kScale>(others, count, i_first, j_first, is_padding, shared, targets);
  }
#pragma unroll
  for (int m = 0; m < kScale; ++m) {
    const std::int64_t i = i_first + thread_y() + kSide * m;
    const auto load = [&](const Tensor& tensor, const bool (&wanted)[kScale], float (&values)[kScale]) {
      std::int64_t offsets[kScale];
#pragma unroll
      for (int n = 0; n < kScale; ++n) {
        const std::int64_t j = j_first + thread_x() + kSide * n;
        offsets[n] = set * tensor.stride[0] + i * tensor.stride[1] + j * tensor.stride[2];
      }
      load_reals<kScale>(tensor, offsets, wanted, values);
    };
    bool is_observed[kScale];
#pragma unroll
    for (int n = 0; n < kScale; ++n) {
      const int j = j_first + thread_x() + kSide * n;
      is_observed[n] = i < j && j < n_rows;
      weights[m][n] = 1.0f;
    }
    if (call.sizes.target_columns > 0) {
#pragma unroll
      for (int n = 0; n < kScale; ++n) {
        if (!(targets[m][n] == targets[m][n])) targets[m][n] = infinity();  // computed, NaN is an error and no gap
      }
    } else {
      load(call.target, is_observed, targets[m]);
    }
    if (call.mask.data != nullptr) {
      float mask[kScale];
      load(call.mask, is_observed, mask);
#pragma unroll
      for (int n = 0; n < kScale; ++n) is_observed[n] &= mask[n] != 0.0f;
    }
    if (call.sizes.weights) {
      load(call.weights, is_observed, weights[m]);
#pragma unroll
      for (int n = 0; n < kScale; ++n) is_observed[n] &= weights[m][n] != 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kScale; ++n) {
      if (!is_observed[n]) targets[m][n] = not_a_number();
      is_bad |= fabsf(targets[m][n]) == infinity();
      const int j = j_first + thread_x() + kSide * n;
      if (call.sizes.gradient && i < count && j < count) {
        const std::int64_t at = (of_set + i) * plan.pair_pitch + j;
        plan.targets[at] = targets[m][n];
        if (call.sizes.weights) plan.weights[at] = weights[m][n];
      }
    }
  }
  double* moments = plan.moments + set * kMoments * plan.tiles + tile;
  store_moments<kScale>(distances, targets, weights, is_bad, moments, plan.tiles, shared);
}

template <int kLargestScale>
__device__ inline void compare_pairs(const HybridSmall& call, const HybridSmallPlan& plan, Shared& shared) {
  const HybridSmallSizes& sizes = call.sizes;
  const Share share = share_of_block(static_cast<std::int64_t>(sizes.sets) * plan.tiles);
  std::int64_t known = -1;
  int n_rows = 0;
  for (std::int64_t item = share.first; item < share.last; ++item) {
    const std::int64_t set = item / plan.tiles;
    const int tile = static_cast<int>(item % plan.tiles);
    if (set != known) {
      known = set;
      n_rows = rows_of_set(call, set);
      const std::int64_t of_set = set * sizes.rows;
      // the last set's origins were read before the barriers of its last tile
      find_origin(plan.units + of_set * plan.pitch, plan.pitch, n_rows, call.metric, shared.origins[0]);
      if (sizes.target_columns > 0) {
        find_origin(plan.target_units + of_set * plan.target_pitch, plan.target_pitch, n_rows, call.target_metric,
                    shared.origins[1]);
      }
    }
    if (tile == 0 && sizes.gradient) {  // every thread copies what it found itself
      for (int column = threadIdx.x; column < plan.pitch; column += kThreads) {
        plan.origin[set * plan.pitch + column] = shared.origins[0][column];
      }
    }
    switch (plan.pair_scale) {
      case 1: pairs_of_tile<1>(call, plan, set, tile, n_rows, shared); break;
      case 2: pairs_of_tile<2>(call, plan, set, tile, n_rows, shared); break;
      default:
        if constexpr (kLargestScale == 4) pairs_of_tile<4>(call, plan, set, tile, n_rows, shared);
    }
  }
}

}  // namespace bgs::cuda
