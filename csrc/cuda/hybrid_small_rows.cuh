// The first phase: rows as they are compared, u = (x * scale - mean) * unit. Scale is a power of two that brings the
// row's largest entry to 1..2, mean the mean of the scaled entries ("correlation") or 0, unit the reciprocal length of
// what is left ("cosine", "correlation"; 0 for a row without direction) or 1, NaN for a row that is not finite.
#pragma once

#include "cuda/hybrid_small_shared.cuh"

namespace bgs::cuda {

constexpr int kEntries = kMostColumns / kWarp;  // of a row in the registers of a lane: entries lane, lane + 32, ...
constexpr int kGroup = 8;                       // entries that are loaded together or left out together

// One row of the embeddings or the target embeddings, and where it goes.
struct RowGiven {
  const void* data;
  DType dtype;
  std::int64_t start, stride;  // in elements
  Metric metric;
  int columns, pitch;
  float* units;  // of the row
  float* unit;
  float* scale;
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

// The mean of a row's scaled entries, less what is known of it. What the first mean was rounded by is most of the error
// of rows that vary little about it, so it is measured again.
__device__ inline float mean_of_row(const float (&entries)[kEntries], int columns, float scale, float known) {
  float sum = 0.0f;
#pragma unroll
  for (int e = 0; e < kEntries; ++e) sum += lane_of_thread() + kWarp * e < columns ? entries[e] * scale - known : 0.0f;
  return columns == 0 ? 0.0f : sum_over_lanes<kWarp>(sum) / static_cast<float>(columns);
}

// Prepares one row with one warp. Padding is a zero row.
__device__ inline void prepare_row(const RowGiven& given, bool is_padding) {
  float entries[kEntries];
  const int columns = is_padding ? 0 : given.columns;
  const auto load = [&](auto type) {
    load_row(static_cast<const decltype(type)*>(given.data) + given.start, given.stride, columns, entries);
  };
  switch (given.dtype) {
    case DType::kFloat16: load(Half{}); break;
    case DType::kBFloat16: load(BFloat16{}); break;
    default: load(float{});
  }
  float top = 0.0f, poison = 0.0f;
#pragma unroll
  for (int e = 0; e < kEntries; ++e) {
    top = fmaxf(top, fabsf(entries[e]));
    if (!is_finite(entries[e])) poison = not_a_number();
  }
  poison = sum_over_lanes<kWarp>(poison);
  float scale = 1.0f, mean = 0.0f, rest_of_mean = 0.0f, unit = 1.0f;
  if (is_bounded(given.metric)) {
    top = largest_of_warp(top);
    scale = power_of_two_below(top);
    float floor = 0.0f;
    if (given.metric == Metric::kCorrelation) {
      mean = mean_of_row(entries, columns, scale, 0.0f);
      rest_of_mean = mean_of_row(entries, columns, scale, mean);
      floor = top * scale * kRounding;  // what is left of a constant row is the rounding of its mean
    }
    float square = 0.0f, largest = 0.0f;
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      const bool is_there = lane_of_thread() + kWarp * e < columns;
      const float rest = is_there ? entries[e] * scale - mean - rest_of_mean : 0.0f;
      square += rest * rest;
      largest = fmaxf(largest, fabsf(rest));
    }
    const float length = sqrtf(sum_over_lanes<kWarp>(square));
    unit = largest_of_warp(largest) <= floor ? 0.0f : 1.0f / length;
  }
  unit += poison;
#pragma unroll
  for (int e = 0; e < kEntries; ++e) {
    const int column = lane_of_thread() + kWarp * e;
    if (column < given.pitch) {
      given.units[column] = column < columns ? (entries[e] * scale - mean - rest_of_mean) * unit : 0.0f;
    }
  }
  if (lane_of_thread() == 0) {
    *given.unit = unit;
    *given.scale = scale;
  }
}

// Apart from the rest of the kernel, in whose loops the rows that it holds would take registers.
__device__ __noinline__ void prepare_rows(const HybridSmall& call, const HybridSmallPlan& plan) {
  const std::int64_t rows = call.sizes.rows, of_one_side = call.sizes.sets * rows;
  const std::int64_t all = call.sizes.target_columns > 0 ? 2 * of_one_side : of_one_side;
  const Tensor& x = call.embeddings;
  const Tensor& y = call.target_embeddings;
  // neighbouring rows go to different blocks: what there is to load is spread over all multiprocessors
  const Share share = share_of(all, blockIdx.x + static_cast<std::int64_t>(gridDim.x) * warp_of_thread(),
                               static_cast<std::int64_t>(gridDim.x) * kWarps);
  for (std::int64_t item = share.first; item < share.last; ++item) {
    const bool is_target = item >= of_one_side;
    const std::int64_t place = is_target ? item - of_one_side : item;
    const std::int64_t set = place / rows, row = place % rows;
    RowGiven given;  // value by value, since a whole tensor chosen so would lie in memory
    given.data = is_target ? y.data : x.data;
    given.dtype = is_target ? y.dtype : x.dtype;
    given.start = set * (is_target ? y.stride[0] : x.stride[0]) + row * (is_target ? y.stride[1] : x.stride[1]);
    given.stride = is_target ? y.stride[2] : x.stride[2];
    given.metric = is_target ? call.target_metric : call.metric;
    given.columns = is_target ? call.sizes.target_columns : call.sizes.columns;
    given.pitch = is_target ? plan.target_pitch : plan.pitch;
    given.units = (is_target ? plan.target_units : plan.units) + place * given.pitch;
    given.unit = (is_target ? plan.target_scales : plan.scales) + set * 2 * rows + row;
    given.scale = given.unit + rows;
    prepare_row(given, row >= rows_of_set(call, set));
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
