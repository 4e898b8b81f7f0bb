// The third phase: the losses of triplets and their derivatives by distances, which are looked up.
#pragma once

#include "cuda/hybrid_small_shared.cuh"

namespace bgs::cuda {

// The distances of the pairs ij, ik, jk of a triplet.
struct OfPairs {
  float v[3];
};

struct TripletLoss {
  float loss;
  float right;  // share of a right choice
  OfPairs by;   // derivatives by the distances, times the temperature in the softmax form
};

__device__ inline TripletLoss loss_of_triplet(const HybridSmall& call, const OfPairs& distances,
                                              const OfPairs& shares) {
  const float near = distances.v[0], far = distances.v[1], other = distances.v[2];
  const float poison = 0.0f * (near + far + other);
  const float closest = fminf(near, fminf(far, other));
  TripletLoss result;
  if (call.form == Form::kMargin) {
    const float hinge = near - far + call.margin;
    const float steep = hinge > 0.0f ? 1.0f : 0.0f;
    result.loss = fmaxf(hinge, 0.0f) + poison;
    result.by = {{steep + poison, -steep + poison, poison}};
  } else {
    float s[3], e[3];
#pragma unroll
    for (int pair = 0; pair < 3; ++pair) {
      s[pair] = (closest - distances.v[pair]) / call.temperature;
      e[pair] = expf(s[pair]);
    }
    const float all = e[0] + e[1] + e[2];
    const float log_all = logf(all);
    if (call.triplet_targets.data != nullptr) {
      const float share = (shares.v[0] + shares.v[1] + shares.v[2]) / all;
      result.loss = poison;
#pragma unroll
      for (int pair = 0; pair < 3; ++pair) {
        result.loss += shares.v[pair] * (log_all - s[pair]);
        result.by.v[pair] = shares.v[pair] - share * e[pair];
      }
    } else {
      result.loss = log_all - s[0] + poison;
      result.by.v[0] = (e[1] + e[2]) / all;  // 1 - share cancels where the choice is nearly certain
      result.by.v[1] = -e[1] / all;
      result.by.v[2] = -e[2] / all;
    }
  }
  const int tied = (near == closest) + (far == closest) + (other == closest);
  result.right = (near == closest ? 1.0f / static_cast<float>(tied) : 0.0f) + poison;
  return result;
}

// The sum of a set's triplet weights.
__device__ inline double weight_of_set(const HybridSmall& call, const HybridSmallPlan& plan, std::int64_t set,
                                       Shared& shared) {
  if (!call.sizes.triplet_weights) return static_cast<double>(call.sizes.triplets);
  double sum[1] = {0.0};
  for (int chunk = threadIdx.x; chunk < plan.chunks; chunk += kThreads) {
    sum[0] += plan.weight_sums[set * plan.chunks + chunk];
  }
  sum_over_block(sum, shared.sums);
  return sum[0];
}

// Adds to an integer, which gives the same sum in any order.
__device__ inline void add_fixed_point(std::int64_t* sum, double value) {
  const long long units = llrint(value * kFixedPoint);
  if (units != 0) atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(units));
}

__device__ inline void judge_triplets(const HybridSmall& call, const HybridSmallPlan& plan, Shared& shared) {
  const HybridSmallSizes& sizes = call.sizes;
  const Tensor& triplets = call.triplets;
  const Tensor& given_weights = call.triplet_weights;
  const Tensor& given_shares = call.triplet_targets;
  const std::int64_t rows = sizes.rows;
  const Share share = share_of_block(static_cast<std::int64_t>(sizes.sets) * plan.chunks);
  std::int64_t known = -1;
  double relative = 0.0;
  for (std::int64_t item = share.first; item < share.last; ++item) {
    const std::int64_t set = item / plan.chunks, chunk = item % plan.chunks;
    if (set != known && sizes.gradient) {
      known = set;
      const double total = weight_of_set(call, plan, set, shared);
      relative = 1.0 / (total == 0.0 ? 1.0 : total);
    }
    double sums[3] = {};
    const std::int64_t begin = chunk * plan.chunk;
    for (std::int64_t t = begin + threadIdx.x; t < begin + plan.chunk && t < sizes.triplets; t += kThreads) {
      std::int64_t of_triplet[3];
      load_integers<3>(triplets, set * triplets.stride[0] + t * triplets.stride[1], triplets.stride[2], of_triplet);
      const float weight = given_weights.data == nullptr
                               ? 1.0f
                               : load_real(given_weights, set * given_weights.stride[0] + t * given_weights.stride[1]);
      OfPairs shares = {};
      if (given_shares.data != nullptr) {
        const std::int64_t at = set * given_shares.stride[0] + t * given_shares.stride[1];
        const std::int64_t next = given_shares.stride[2];
        load_reals<3>(given_shares, {at, at + next, at + 2 * next}, {true, true, true}, shares.v);
      }
      OfPairs distances;
      std::int64_t low[3], high[3];
#pragma unroll
      for (int pair = 0; pair < 3; ++pair) {  // ij, ik, jk
        const std::int64_t one = of_triplet[pair == 2 ? 1 : 0], two = of_triplet[pair == 0 ? 1 : 2];
        low[pair] = one < two ? one : two;
        high[pair] = one < two ? two : one;
        const bool is_there = low[pair] >= 0 && high[pair] < rows;
        const float d = is_there ? plan.pairs[(set * rows + low[pair]) * plan.pair_pitch + high[pair]] : not_a_number();
        distances.v[pair] = is_finite(d) ? d : not_a_number();
      }
      const TripletLoss result = loss_of_triplet(call, distances, shares);
      sums[0] += weight;
      sums[1] += static_cast<double>(weight) * result.loss;
      sums[2] += static_cast<double>(weight) * result.right;
      if (sizes.gradient && is_finite(result.by.v[0])) {
#pragma unroll
        for (int pair = 0; pair < 3; ++pair) {
          const double value = static_cast<double>(weight) * result.by.v[pair] * relative;
          add_fixed_point(plan.pair_sums + (set * rows + low[pair]) * rows + high[pair], value);
        }
      }
    }
    sum_over_block(sums, shared.sums);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int k = 0; k < 3; ++k) plan.triplet_sums[(set * 3 + k) * plan.chunks + chunk] = sums[k];
    }
  }
}

}  // namespace bgs::cuda
