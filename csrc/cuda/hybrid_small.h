// The hybrid loss of small sets on a GPU: value and gradient in one cooperative launch. What a call is made of, how it
// is cut into work, and the launch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor.h"

namespace bgs::cuda {

constexpr int kMostRows = 1024;
constexpr int kMostColumns = 1024;

// The numbers of words are their places in METRICS, FORMS and METHODS of bgs_kernels' references.
enum class Metric : std::int32_t { kCosine, kCorrelation, kEuclidean, kSqeuclidean, kDot };
enum class Form : std::int32_t { kSoftmax, kMargin };
enum class Rsa : std::int32_t { kPearson, kCosine };

// What decides how a call is cut and how much memory it needs.
struct HybridSmallSizes {
  std::int32_t sets = 0;            // B
  std::int32_t rows = 0;            // N
  std::int32_t columns = 0;         // D
  std::int32_t target_columns = 0;  // E; 0 without target embeddings
  std::int64_t triplets = 0;        // T
  bool target = false;              // whether there is a target of either kind
  bool weights = false;
  bool triplet_weights = false;
  bool gradient = false;  // whether the gradient is wanted
};

// The arguments of bgs_kernels.hybrid_loss.reference.hybrid_loss. Outputs: losses (B,), terms (3, B) triplet, r and
// accuracy, gradient (B, N, D) contiguous, all float32.
struct HybridSmall {
  HybridSmallSizes sizes;
  Tensor embeddings, triplets, target, target_embeddings, mask, weights, triplet_weights, triplet_targets, lengths;
  double alpha = 0.0, beta = 0.0;
  float temperature = 1.0f, margin = 0.0f;
  Metric metric = Metric::kCosine, target_metric = Metric::kCosine;
  Form form = Form::kSoftmax;
  Rsa rsa = Rsa::kPearson;
  float* losses = nullptr;
  float* terms = nullptr;
  std::int64_t terms_stride = 0;  // between terms of one set
  float* gradient = nullptr;
};

// How a call is cut, and where the kernel keeps what one phase leaves for the next. All of it follows from the sizes
// alone, never from the device, so that results have the same bits on every GPU of an architecture.
struct HybridSmallPlan {
  std::int32_t pair_scale;      // tiles of pairs are 16 * scale wide; scale is 1, 2 or 4
  std::int32_t gradient_scale;  // so are tiles of the gradient
  std::int32_t blocks;          // of rows, as wide as a tile of pairs
  std::int32_t tiles;           // of pairs, on and above the diagonal
  std::int32_t row_tiles, column_tiles;  // of the gradient
  std::int32_t chunks;                   // of triplets
  std::int64_t chunk;                    // triplets in one
  std::int32_t pitch, target_pitch, pair_pitch;  // between rows of units, target units and pairs: multiples of 4

  float* units;          // (B, N, pitch) rows as they are compared, before the origin is subtracted
  float* scales;         // (B, 2, N) what rows were multiplied by: the reciprocal length and a power of two
  float* origin;         // (B, pitch)
  float* target_units;   // (B, N, target_pitch)
  float* target_scales;  // (B, 2, N)
  float* pairs;          // (B, N, pair_pitch) distances on and above the diagonal; later the coefficients of all pairs
  float* targets;        // (B, N, pair_pitch) above the diagonal, NaN where unobserved
  float* weights;        // (B, N, pair_pitch) above the diagonal
  float* row_sums;       // (B, 2, blocks, N) per block of partners: sums of coefficients, and of coefficient x distance
  std::int64_t* pair_sums;  // (B, N, N) above the diagonal: fixed-point sums of triplets' derivatives by distances
  double* moments;          // (B, kMoments, tiles)
  double* triplet_sums;     // (B, 3, chunks) weights, weighted losses, weighted shares of right choices
  double* weight_sums;      // (B, chunks) sums of triplet weights

  std::size_t bytes;  // of the workspace
};

// Cuts a call. `workspace` may be null where only sizes are wanted; it is aligned to 256 bytes otherwise.
HybridSmallPlan plan_hybrid_small(const HybridSmallSizes& sizes, void* workspace);

// How many blocks can have work at the same time in the phase that has the most.
std::int64_t useful_blocks(const HybridSmallSizes& sizes, const HybridSmallPlan& plan);

// Launches a call on a device and a stream (a cudaStream_t). Nothing waits for the host and nothing is allocated, so it
// can be captured in a CUDA graph. Throws std::runtime_error with the name of CUDA's error.
void launch_hybrid_small(const HybridSmall& call, void* workspace, int device, std::uintptr_t stream);

}  // namespace bgs::cuda
