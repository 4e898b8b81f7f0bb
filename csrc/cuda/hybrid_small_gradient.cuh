// The last phase: the gradient by rows, a product of coefficients and rows. With c_ij the coefficients, the gradient by
// u_i is (sum_j c_ij) u_i - sum_j c_ij u_j, and that by x_i needs besides only sum_j c_ij d_ij, which is
// u_i . sum_j c_ij (u_i - u_j) for vectors of length one: so every tile of it can be finished on its own.
#pragma once

#include "cuda/hybrid_small_shared.cuh"

namespace bgs::cuda {

// Entries of a row that is not finite: nothing asked for it, or all coefficients are NaN.
__device__ inline float finite_or_zero(float value) { return is_finite(value) ? value : 0.0f; }

// Columns next to each other, which one load brings.
template <int kScale>
struct alignas(4 * kScale) Neighbours {
  float v[kScale];
};

template <int kScale>
__device__ inline void gradient_of_tile(const HybridSmall& call, const HybridSmallPlan& plan, std::int64_t set,
                                        int row_tile, int column_tile, Shared& shared) {
  constexpr int kTile = kSide * kScale, kTileDepth = kDepth / kScale, kPitch = kTileDepth + 4;
  constexpr int kFours = kTileDepth / 4, kColumnFours = kTile / 4;
  constexpr int kLoads = kTile * kFours / kThreads;
  constexpr int kSplit = kSplitOf<kScale>;
  const int count = call.sizes.rows, columns = call.sizes.columns;
  const int i_first = row_tile * kTile, d_first = column_tile * kTile;
  const std::int64_t of_set = set * count;
  const float* pairs = plan.pairs + of_set * plan.pair_pitch;
  const float* units = plan.units + of_set * plan.pitch;
  const float* origin = plan.origin + set * plan.pitch;
  Four next[2][kLoads];
  const auto load = [&](int k_first) {
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int place = threadIdx.x + kThreads * l;
      const int i = i_first + place / kFours, of_row = k_first + place % kFours * 4;
      next[0][l] = next[1][l] = {};
      if (i < count && of_row < plan.pair_pitch) {
        next[0][l] = *reinterpret_cast<const Four*>(pairs + static_cast<std::int64_t>(i) * plan.pair_pitch + of_row);
      }
      const int k = k_first + place / kColumnFours, d = d_first + place % kColumnFours * 4;
      if (k < count && d < plan.pitch) {
        Four entries = *reinterpret_cast<const Four*>(units + static_cast<std::int64_t>(k) * plan.pitch + d);
        const Four start = *reinterpret_cast<const Four*>(origin + d);
#pragma unroll
        for (int v = 0; v < 4; ++v) entries.v[v] = finite_or_zero(entries.v[v] - start.v[v]);
        next[1][l] = entries;
      }
    }
  };

  __syncthreads();  // the last tile's sums have been read
  load(0);
  if (threadIdx.x < 2 * kTile) {
    const int kind = threadIdx.x / kTile, i = i_first + threadIdx.x % kTile;
    double sum = 0.0;
    for (int block = 0; i < count && block < plan.blocks; ++block) {
      sum += plan.row_sums[((set * 2 + kind) * plan.blocks + block) * count + i];
    }
    shared.sizes[kind][threadIdx.x % kTile] = static_cast<float>(sum);
  }
  float sums[kScale][kScale] = {};
  for (int k_first = 0; k_first < count; k_first += kTileDepth) {
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int place = threadIdx.x + kThreads * l;
      *reinterpret_cast<Four*>(shared.panels[0] + place / kFours * kPitch + place % kFours * 4) = next[0][l];
      *reinterpret_cast<Four*>(shared.panels[1] + place * 4) = next[1][l];
    }
    __syncthreads();
    if (k_first + kTileDepth < count) load(k_first + kTileDepth);
    const int fours = count - k_first < kTileDepth ? (count - k_first + 3) / 4 : kFours;
    float products[kScale][kScale][kSplit] = {};  // of one panel: a sum of short sums is more precise than a long one
#pragma unroll kUnrollOf<kScale>
    for (int k = 0; k < fours; ++k) {
      Four a[kScale];
#pragma unroll
      for (int m = 0; m < kScale; ++m) {
        a[m] = *reinterpret_cast<const Four*>(shared.panels[0] + (thread_y() + kSide * m) * kPitch + 4 * k);
      }
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const float* row = shared.panels[1] + (4 * k + v) * kTile;
        const auto b = *reinterpret_cast<const Neighbours<kScale>*>(row + thread_x() * kScale);
#pragma unroll
        for (int m = 0; m < kScale; ++m) {
#pragma unroll
          for (int n = 0; n < kScale; ++n) products[m][n][v % kSplit] += a[m].v[v] * b.v[n];
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

  const int n_rows = rows_of_set(call, set);
  float* gradient = call.gradient + of_set * columns;
#pragma unroll
  for (int m = 0; m < kScale; ++m) {
    const int in_tile = thread_y() + kSide * m, i = i_first + in_tile;
    if (i >= count) continue;
    const float total = shared.sizes[0][in_tile], radial = shared.sizes[1][in_tile];
    const float* scales = plan.scales + 2 * of_set + i;
    const float unit = finite_or_zero(scales[0]), scale = scales[count];
#pragma unroll
    for (int n = 0; n < kScale; ++n) {
      const int d = d_first + thread_x() * kScale + n;
      if (d >= columns) continue;
      float by_row = sums[m][n];
      if (call.metric != Metric::kDot) {
        const float u = finite_or_zero(units[static_cast<std::int64_t>(i) * plan.pitch + d]);
        by_row = total * (u - origin[d]) - by_row;
        if (is_bounded(call.metric)) by_row = (by_row - radial * u) * unit * scale;
      }
      gradient[static_cast<std::int64_t>(i) * columns + d] = i < n_rows ? by_row : 0.0f;
    }
  }
}

template <int kLargestScale>
__device__ inline void differentiate(const HybridSmall& call, const HybridSmallPlan& plan, Shared& shared) {
  const std::int64_t of_one_set = static_cast<std::int64_t>(plan.row_tiles) * plan.column_tiles;
  const Share share = share_of_block(call.sizes.sets * of_one_set);
  for (std::int64_t item = share.first; item < share.last; ++item) {
    const std::int64_t set = item / of_one_set;
    const int tile = static_cast<int>(item % of_one_set);
    const int row_tile = tile / plan.column_tiles, column_tile = tile % plan.column_tiles;
    switch (plan.gradient_scale) {
      case 1: gradient_of_tile<1>(call, plan, set, row_tile, column_tile, shared); break;
      case 2: gradient_of_tile<2>(call, plan, set, row_tile, column_tile, shared); break;
      default:
        if constexpr (kLargestScale == 4) gradient_of_tile<4>(call, plan, set, row_tile, column_tile, shared);
    }
  }
}

}  // namespace bgs::cuda
