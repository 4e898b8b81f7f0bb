// How the threads of a block add up and share out work, always in the same order.
#pragma once

#include <cstdint>

#include "cuda/hybrid_small_shape.h"

namespace bgs::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarp; }

__device__ inline int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarp; }

// Sums over groups of `kLanes` neighbouring lanes; every lane gets the same bits.
template <int kLanes, typename T>
__device__ inline T sum_over_lanes(T value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

__device__ inline float largest_of_warp(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

constexpr int kMostSums = 8;

struct BlockSums {
  double of_warps[kWarps][kMostSums];
};

// Replaces every thread's values by their sums over the block.
template <int kSums>
__device__ inline void sum_over_block(double (&values)[kSums], BlockSums& shared) {
  static_assert(kSums <= kMostSums, "no room for so many sums");
#pragma unroll
  for (int k = 0; k < kSums; ++k) values[k] = sum_over_lanes<kWarp>(values[k]);
  __syncthreads();  // the last sums have been read
  if (lane_of_thread() == 0) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) shared.of_warps[warp_of_thread()][k] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    values[k] = 0.0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) values[k] += shared.of_warps[warp][k];
  }
}

// A stretch of work: neighbouring items, so that a block meets few sets.
struct Share {
  std::int64_t first, last;
};

__device__ inline Share share_of(std::int64_t items, std::int64_t part, std::int64_t parts) {
  return {items * part / parts, items * (part + 1) / parts};
}

__device__ inline Share share_of_block(std::int64_t items) { return share_of(items, blockIdx.x, gridDim.x); }

}  // namespace bgs::cuda
