// The hybrid loss on the CPU: what a call is given, and the builds of it for several instruction sets.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace bgs::cpu {

enum class Metric : std::int32_t { kCosine = 0, kCorrelation = 1, kEuclidean = 2, kSqEuclidean = 3, kDot = 4 };

// The settings of a loss, as bgs_kernels.hybrid_loss.reference.hybrid_loss takes them.
struct LossSettings {
  double alpha = 0;
  double beta = 0;
  bool margin_form = false;
  double temperature = 1;
  double margin = 0;
  Metric metric = Metric::kCosine;
  Metric target_metric = Metric::kCosine;
  bool centred = true;  // Pearson rather than cosine
};

// The arguments of bgs_kernels.hybrid_loss.reference.hybrid_loss for `sets` sets of `rows` embeddings, and its results.
struct HybridLoss : LossSettings {
  explicit HybridLoss(const LossSettings& settings) : LossSettings(settings) {}

  std::int64_t sets = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t triplet_count = 0;
  std::int64_t target_columns = 0;
  Tensor embeddings;         // (sets, rows, columns) floating
  Tensor triplets;           // (sets, triplet_count, 3) integer
  Tensor target;             // (sets, rows, rows) any dtype
  Tensor target_embeddings;  // (sets, rows, target_columns) floating
  Tensor mask;               // (sets, rows, rows) bool
  Tensor weights;            // (sets, rows, rows) any dtype
  Tensor triplet_weights;    // (sets, triplet_count) any dtype
  Tensor triplet_targets;    // (sets, triplet_count, 3) any dtype
  Tensor lengths;            // (sets,) integer
  bool distinct = false;     // whether a triplet that names a row twice is an error
  int threads = 1;
  std::int64_t small_rows = 0;  // sets of up to so many rows keep their matrix of distances: it stays in cache
  std::int64_t kept_bytes = 0;  // memory for distances of larger sets, from forward to backward

  float* losses = nullptr;    // (sets,)
  float* terms = nullptr;     // (3, sets): triplet term, correlation, accuracy; null where they are not wanted
  float* gradient = nullptr;  // (sets, rows, columns) of the losses, or null where none is wanted

  bool has_target() const { return target || target_embeddings; }
};

// Each computes the losses, the same for any number of threads, and throws std::out_of_range for an index of a row that
// is not there or a triplet that is none, and std::bad_alloc. One that the compiler or the processor does not support is not there to be called.
namespace baseline {
void hybrid_loss(const HybridLoss& given);
}
#if defined(BGS_X86)
namespace avx2 {
void hybrid_loss(const HybridLoss& given);
}
namespace avx512 {
void hybrid_loss(const HybridLoss& given);
}
#endif

}  // namespace bgs::cpu
