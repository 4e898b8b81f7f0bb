// What ranking does to single numbers: the keys by which they are sorted, and the rank at a place among sorted keys.
// Plain C++ but for the words that nvcc wants, so that the tests can run it on a CPU.
#pragma once

#include <cstdint>

#include "cuda/elements.cuh"

namespace bgs::cuda {

// Whole numbers in the order of floating-point numbers: equal numbers have equal keys, NaN the largest of all.
__device__ inline std::uint32_t sort_key(float value) {
  if (!(value == value)) return 0xffffffffu;
  const std::uint32_t bits = value == 0.0f ? 0u : same_bits<std::uint32_t>(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline std::uint64_t sort_key(double value) {
  if (!(value == value)) return ~std::uint64_t{0};
  const std::uint64_t bits = value == 0.0 ? 0u : same_bits<std::uint64_t>(value);
  return bits >> 63 ? ~bits : bits | std::uint64_t{1} << 63;
}

// The key of a number among those of all sets: that of float32 leaves room for the number of the set before it, so that
// one sort does for all of them.
__device__ inline std::uint64_t sort_key_in_set(float value, std::int64_t set) {
  return static_cast<std::uint64_t>(set) << 32 | sort_key(value);
}

__device__ inline std::uint64_t sort_key_in_set(double value, std::int64_t) { return sort_key(value); }

__device__ inline bool is_key_of_nan(std::uint64_t key, DType dtype) {
  return dtype == DType::kFloat32 ? static_cast<std::uint32_t>(key) == 0xffffffffu : key == ~std::uint64_t{0};
}

// Gives how far a run of equal keys reaches from `place` towards `end`, the first or one past the last place of a set:
// in doubling strides, then in halving ones. Most numbers have no equal, and cost one look.
__device__ inline std::int64_t reach_of_run(const std::uint64_t* keys, std::int64_t place, std::int64_t end,
                                            int direction) {
  const std::uint64_t key = keys[place];
  const std::int64_t most = direction > 0 ? end - 1 - place : place - end;
  std::int64_t reach = 0, stride = 1;
  while (reach + stride <= most && keys[place + direction * (reach + stride)] == key) {
    reach += stride;
    stride *= 2;
  }
  for (; stride > 0; stride /= 2) {
    if (reach + stride <= most && keys[place + direction * (reach + stride)] == key) reach += stride;
  }
  return reach;
}

// The rank of the key at `place` among the sorted keys first..last-1 of its set.
__device__ inline double rank_at(const std::uint64_t* keys, std::int64_t place, std::int64_t first, std::int64_t last) {
  const std::int64_t before = reach_of_run(keys, place, first, -1), after = reach_of_run(keys, place, last, 1);
  return static_cast<double>(place - first) + 1.0 + 0.5 * static_cast<double>(after - before);
}

}  // namespace bgs::cuda
