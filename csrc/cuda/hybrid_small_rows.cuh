// The first phase: rows as they are compared, u = (x * scale - mean) * unit. Scale is a power of two that brings the
// row's largest entry to 1..2, mean the mean of the scaled entries ("correlation") or 0, unit the reciprocal length of
// what is left ("cosine", "correlation"; 0 for a row without direction) or 1, NaN for a row that is not finite.
#pragma once

#include "cuda/hybrid_small_shared.cuh"

namespace bgs::cuda {

constexpr int kEntries = kMostColumns / kWarp;  // of a row in the registers of a lane: entries lane, lane + 32, ...
constexpr int kGroup = 8;                       // entries that are loaded together or left out together

// The tensors of one side: embeddings or target embeddings.
struct RowsGiven {
  Tensor tensor;
  Metric metric;
  int columns, pitch;
  float* units;
  float* scales;
};

template <typename T>
__device__ inline void load_row(const T* row, std::int64_t stride, int columns, float (&entries)[kEntries]) {
#pragma unroll
  for (int group = 0; group < kEntries; group += kGroup) {
    if (group * kWarp < columns) {
#pragma unroll
      for (int e = group; e < group + kGroup; ++e) {
        const int column = lane_of_thread() + kWarp * e;
        entries[e] = column < columns ? static_cast<float>(row[column * stride]) : 0.0f;
      }
    } else {
#pragma unroll
      for (int e = group; e < group + kGroup; ++e) entries[e] = 0.0f;
    }
  }
}

// Gives the power of two that scales `top` (>= 0, finite) to 1..2 (to 2..4 at the upper end of the range).
__device__ inline float power_of_two_below(float top) {
  const int exponent = static_cast<int>(same_bits<std::uint32_t>(top) >> 23) & 0xff;
  const float scale = same_bits<float>(static_cast<std::uint32_t>(254 - (exponent < 253 ? exponent : 253)) << 23);
  return top == 0.0f ? 1.0f : scale;
}

// Prepares one row with one warp. Padding is a zero row.
__device__ inline void prepare_row(const RowsGiven& given, std::int64_t set, int row, int rows, bool is_padding) {
  float entries[kEntries];
  const Tensor& tensor = given.tensor;
  const std::int64_t start = set * tensor.stride[0] + row * tensor.stride[1];
  const int columns = is_padding ? 0 : given.columns;
  switch (tensor.dtype) {
    case DType::kFloat16: load_row(static_cast<const Half*>(tensor.data) + start, tensor.stride[2], columns, entries); break;
    case DType::kBFloat16: load_row(static_cast<const BFloat16*>(tensor.data) + start, tensor.stride[2], columns, entries); break;
    default: load_row(static_cast<const float*>(tensor.data) + start, tensor.stride[2], columns, entries);
  }
  float top = 0.0f, poison = 0.0f;
#pragma unroll
  for (int e = 0; e < kEntries; ++e) {
    top = fmaxf(top, fabsf(entries[e]));
    if (!is_finite(entries[e])) poison = not_a_number();
  }
  poison = sum_over_lanes<kWarp>(poison);
  float scale = 1.0f, mean = 0.0f, unit = 1.0f;
  if (is_bounded(given.metric)) {
    top = largest_of_warp(top);
    scale = power_of_two_below(top);
    float floor = 0.0f;
    if (given.metric == Metric::kCorrelation) {
      float sum = 0.0f;
#pragma unroll
      for (int e = 0; e < kEntries; ++e) sum += entries[e] * scale;
      mean = sum_over_lanes<kWarp>(sum) / static_cast<float>(given.columns);
      floor = top * scale * kRounding;  // what is left of a constant row is the rounding of its mean
    }
    float square = 0.0f, largest = 0.0f;
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      const float rest = lane_of_thread() + kWarp * e < columns ? entries[e] * scale - mean : 0.0f;
      square += rest * rest;
      largest = fmaxf(largest, fabsf(rest));
    }
    const float length = sqrtf(sum_over_lanes<kWarp>(square));
    unit = largest_of_warp(largest) <= floor ? 0.0f : 1.0f / length;
  }
  unit += poison;
  float* units = given.units + (set * rows + row) * given.pitch;
#pragma unroll
  for (int e = 0; e < kEntries; ++e) {
    const int column = lane_of_thread() + kWarp * e;
    if (column < given.pitch) units[column] = column < columns ? (entries[e] * scale - mean) * unit : 0.0f;
  }
  if (lane_of_thread() == 0) {
    float* scales = given.scales + set * 2 * rows + row;
    scales[0] = unit;
    scales[rows] = scale;
  }
}

__device__ inline void prepare_rows(const HybridSmall& call, const HybridSmallPlan& plan) {
  const HybridSmallSizes& sizes = call.sizes;
  const RowsGiven embeddings{call.embeddings, call.metric, sizes.columns, plan.pitch, plan.units, plan.scales};
  const RowsGiven targets{call.target_embeddings, call.target_metric, sizes.target_columns,
                          plan.target_pitch, plan.target_units, plan.target_scales};
  const std::int64_t of_one_side = static_cast<std::int64_t>(sizes.sets) * sizes.rows;
  const std::int64_t all = sizes.target_columns > 0 ? 2 * of_one_side : of_one_side;
  // neighbouring rows go to different blocks: what there is to load is spread over all multiprocessors
  const Share share = share_of(all, blockIdx.x + static_cast<std::int64_t>(gridDim.x) * warp_of_thread(),
                               static_cast<std::int64_t>(gridDim.x) * kWarps);
  for (std::int64_t item = share.first; item < share.last; ++item) {
    const bool is_target = item >= of_one_side;
    const std::int64_t place = is_target ? item - of_one_side : item;
    const std::int64_t set = place / sizes.rows;
    const int row = static_cast<int>(place % sizes.rows);
    prepare_row(is_target ? targets : embeddings, set, row, sizes.rows, row >= rows_of_set(call, set));
  }
}

// Clears what triplets will be added to.
__device__ inline void clear_pair_sums(const HybridSmall& call, const HybridSmallPlan& plan) {
  const std::int64_t count = static_cast<std::int64_t>(call.sizes.sets) * call.sizes.rows * call.sizes.rows;
  for (std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; place < count;
       place += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    plan.pair_sums[place] = 0;
  }
}

// Adds up the weights of every chunk of triplets: their derivatives are summed relative to all weights.
__device__ inline void sum_triplet_weights(const HybridSmall& call, const HybridSmallPlan& plan, Shared& shared) {
  const Tensor& weights = call.triplet_weights;
  const Share share = share_of_block(static_cast<std::int64_t>(call.sizes.sets) * plan.chunks);
  for (std::int64_t item = share.first; item < share.last; ++item) {
    const std::int64_t set = item / plan.chunks, begin = item % plan.chunks * plan.chunk;
    double sum[1] = {0.0};
    for (std::int64_t t = begin + threadIdx.x; t < begin + plan.chunk && t < call.sizes.triplets; t += kThreads) {
      sum[0] += load_real(weights, set * weights.stride[0] + t * weights.stride[1]);
    }
    sum_over_block(sum, shared.sums);
    if (threadIdx.x == 0) plan.weight_sums[item] = sum[0];
  }
}

}  // namespace bgs::cuda
