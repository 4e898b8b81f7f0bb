// Pairwise distances on the CPU and their gradient: what a call is given, and the builds for several instruction sets.
#pragma once

#include <cstdint>

#include "cpu/hybrid_loss.h"
#include "tensor.h"

namespace bgs::cpu {

// The distances of `rows` rows x to `others` rows y, or to each other where y is not given, of `sets` sets.
struct PairwiseDistance {
  std::int64_t sets = 0;
  std::int64_t rows = 0;
  std::int64_t others = 0;
  std::int64_t columns = 0;
  Tensor x;  // (sets, rows, columns) floating
  Tensor y;  // (sets, others, columns) floating
  Metric metric = Metric::kCosine;
  int threads = 1;

  float* distances = nullptr;  // (sets, rows, others): written forward, read backward
  Tensor upstream;             // (sets, rows, others) float32: the gradient by the distances; null forward
  float* x_gradient = nullptr;  // (sets, rows, columns)
  float* y_gradient = nullptr;  // (sets, others, columns); null where y is not given
};

namespace baseline {
void pairwise_distance(const PairwiseDistance& given);
}
#if defined(BGS_X86)
namespace avx2 {
void pairwise_distance(const PairwiseDistance& given);
}
namespace avx512 {
void pairwise_distance(const PairwiseDistance& given);
}
#endif

}  // namespace bgs::cpu
