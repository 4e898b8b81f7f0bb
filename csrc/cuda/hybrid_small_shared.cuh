// What the phases of the kernel of small sets have in common: shared memory, constants, and where a set's part of each
// tensor begins.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/block.cuh"
#include "cuda/elements.cuh"
#include "cuda/hybrid_small.h"
#include "cuda/hybrid_small_shape.h"

namespace bgs::cuda {

// ROUNDING of bgs_kernels/pairwise/reference.py for float32: the part of cancelled terms that counts as rounding error.
constexpr float kRounding = 0x1p-18f;

// Units per 1 of derivatives that are summed as integers, as in bgs_kernels/triplet/kernels.py. Weights relative to
// their sum make every sum at most 1 for shares that sum to 1, and leave room for shares that sum to some thousands.
constexpr double kFixedPoint = 0x1p50;

constexpr int kMostTile = kSide * kMostScale;

// Panels of rows are deeper the fewer they are, so that every thread loads two vectors of four of each.
constexpr int kDepth = 128;
constexpr int kPanel = kMostTile * (kDepth / kMostScale + 4);

struct alignas(16) Four {
  float v[4];
};

// A thread with one product to sum up sums it in parts, which need not wait for each other.
template <int kScale>
constexpr int kSplitOf = kScale == 1 ? 4 : 1;

// How far loops over panels are unrolled: what large tiles hold fills the registers.
template <int kScale>
constexpr int kUnrollOf = kScale == 1 ? 4 : 1;

template <int kSplit>
__device__ inline float sum_of_split(const float (&parts)[kSplit]) {
  if constexpr (kSplit == 1) return parts[0];
  else return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

// Nothing in it outlives a phase.
struct Shared {
  union {
    alignas(16) float panels[2][kPanel];  // rows that are multiplied
    float tiles[2][kMostTile * (kMostTile + 1)];  // coefficients, and coefficients times distances
  };
  alignas(16) float origins[2][kMostColumns];
  float sizes[2][kMostTile];
  BlockSums sums;
};

__device__ inline float not_a_number() { return same_bits<float>(std::uint32_t{0x7fc00000u}); }

__device__ inline float infinity() { return same_bits<float>(std::uint32_t{0x7f800000u}); }

__device__ inline bool is_finite(float value) { return fabsf(value) < infinity(); }

__device__ inline bool is_bounded(Metric metric) { return metric == Metric::kCosine || metric == Metric::kCorrelation; }

__device__ inline int rows_of_set(const HybridSmall& call, std::int64_t set) {
  if (call.lengths.data == nullptr) return call.sizes.rows;
  std::int64_t length[1];
  load_integers<1>(call.lengths, set * call.lengths.stride[0], 0, length);
  return static_cast<int>(length[0]);
}

// The row and the column of a thread in its block, and of entry (m, n) of its own in a tile: y + 16 m, x + 16 n.
__device__ inline int thread_y() { return static_cast<int>(threadIdx.x) / kSide; }

__device__ inline int thread_x() { return static_cast<int>(threadIdx.x) % kSide; }

}  // namespace bgs::cuda
