// Ranks of numbers on a GPU, ties sharing their mean rank.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor.h"

namespace bgs::cuda {

// The ranks within every set of `values` (sets, count), float32 or float64 with any strides: 1 for the smallest, equal
// numbers share the mean of their ranks, and NaN is unobserved: it comes last and its rank is NaN. -0.0 equals 0.0.
struct FractionalRank {
  Tensor values;
  std::int64_t sets = 0;
  std::int64_t count = 0;
  double* ranks = nullptr;  // (sets, count) contiguous
};

// Counts the bytes of device memory, aligned to 256, that a call needs to work in.
std::size_t fractional_rank_workspace(std::int64_t sets, std::int64_t count, int device);

// Ranks on a device and a stream (a cudaStream_t), without waiting for the host. Throws std::runtime_error with the
// name of CUDA's error, std::invalid_argument for more than 2^32 - 1 numbers, another dtype or too small a workspace.
void fractional_rank(const FractionalRank& call, void* workspace, std::size_t bytes, int device, std::uintptr_t stream);

}  // namespace bgs::cuda
