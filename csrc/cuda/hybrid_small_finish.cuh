// The fourth phase: the terms of every set from the sums of its tiles and chunks, and the coefficients of its pairs,
// the derivatives of the loss by distances times the steepness of these.
#pragma once

#include "cuda/hybrid_small_pairs.cuh"
#include "cuda/hybrid_small_shared.cuh"

namespace bgs::cuda {

// A set's terms, and what its coefficients are made of: the derivative of the loss by d_ij through the correlation is
// w_ij * (by_h * (h_ij - centre_h) + by_d * (d_ij - centre_d)), and sums of triplets' derivatives are scaled by
// by_triplet.
struct TermsOfSet {
  double loss, triplet, r, accuracy;
  double by_h, by_d, centre_h, centre_d, by_triplet;
};

__device__ inline bool is_still(double second, double weight, double mean, bool bounded) {
  double size = fabs(mean);
  if (bounded) size = fmax(size, 1.0);
  const double floor = kRounding * size;
  return second / (weight == 0.0 ? 1.0 : weight) <= floor * floor;
}

// Merges the moments of tiles (Chan, Golub and LeVeque 1979) and correlates.
__device__ inline void correlate(const HybridSmall& call, const HybridSmallPlan& plan, std::int64_t set, Shared& shared,
                                 TermsOfSet& terms) {
  const double* moments = plan.moments + set * kMoments * plan.tiles;
  const auto moment = [&](Moment which, int tile) { return moments[which * plan.tiles + tile]; };
  double sums[5] = {};
  for (int tile = threadIdx.x; tile < plan.tiles; tile += kThreads) {
    sums[0] += moment(kCount, tile);
    sums[1] += moment(kWeight, tile);
    sums[2] += moment(kSumD, tile);
    sums[3] += moment(kSumH, tile);
    sums[4] += moment(kBad, tile);
  }
  sum_over_block(sums, shared.sums);
  const double weight = sums[1], share = 1.0 / (weight == 0.0 ? 1.0 : weight);
  const double mean_d = sums[2] * share, mean_h = sums[3] * share;
  const bool centred = call.rsa == Rsa::kPearson;
  const double centre_d = centred ? mean_d : 0.0, centre_h = centred ? mean_h : 0.0;
  double second[3] = {};
  for (int tile = threadIdx.x; tile < plan.tiles; tile += kThreads) {
    const double w = moment(kWeight, tile), of_tile = 1.0 / (w == 0.0 ? 1.0 : w);
    const double d = moment(kSumD, tile) * of_tile - centre_d, h = moment(kSumH, tile) * of_tile - centre_h;
    second[0] += moment(kSecondDD, tile) + w * d * d;
    second[1] += moment(kSecondHH, tile) + w * h * h;
    second[2] += moment(kSecondDH, tile) + w * d * h;
  }
  sum_over_block(second, shared.sums);
  const bool bounded_h = call.sizes.target_columns > 0 && is_bounded(call.target_metric);
  const bool undefined = sums[0] < 2.0 || is_still(second[0], weight, mean_d, is_bounded(call.metric)) ||
                         is_still(second[1], weight, mean_h, bounded_h);
  const double poison = sums[4] > 0.0 ? static_cast<double>(not_a_number()) : 0.0;
  const double spread = undefined ? 1.0 : sqrt(second[0]) * sqrt(second[1]);
  terms.r = (undefined ? 0.0 : second[2] / spread) + poison;
  terms.by_h = (undefined ? 0.0 : 1.0 / spread) + poison;
  terms.by_d = (undefined ? 0.0 : -terms.r / second[0]) + poison;
  terms.centre_d = centre_d;
  terms.centre_h = centre_h;
}

__device__ inline TermsOfSet terms_of_set(const HybridSmall& call, const HybridSmallPlan& plan, std::int64_t set,
                                          Shared& shared) {
  TermsOfSet terms = {};
  double sums[3] = {};
  for (int chunk = threadIdx.x; chunk < plan.chunks; chunk += kThreads) {
#pragma unroll
    for (int k = 0; k < 3; ++k) sums[k] += plan.triplet_sums[(set * 3 + k) * plan.chunks + chunk];
  }
  sum_over_block(sums, shared.sums);
  const double nothing = not_a_number();
  const double share = 1.0 / (sums[0] == 0.0 ? 1.0 : sums[0]);
  terms.triplet = sums[1] * share;
  terms.accuracy = sums[0] == 0.0 ? nothing : sums[2] * share;
  // the sums are relative to the weights already, and cannot hold what is not finite
  terms.by_triplet = (call.alpha + 0.0 * terms.triplet) / kFixedPoint;
  if (call.form == Form::kSoftmax) terms.by_triplet /= call.temperature;
  terms.r = nothing;
  if (call.sizes.target) correlate(call, plan, set, shared, terms);
  terms.loss = call.alpha * terms.triplet;
  if (call.beta != 0.0) terms.loss -= call.beta * terms.r;
  return terms;
}

// The factor kappa in the derivative kappa * (u_i - u_j) of a distance by u_i ("dot": kappa * u_j); 0 at distance 0.
__device__ inline float steepness(float distance, Metric metric) {
  if (metric == Metric::kDot) return -1.0f;
  if (distance == 0.0f) return 0.0f;
  if (metric == Metric::kEuclidean) return 1.0f / distance;
  return metric == Metric::kSqeuclidean ? 2.0f : 1.0f;
}

// Puts the coefficients of a tile in place of its distances, and in the mirror image's, and adds them up by rows. No
// other tile's distances stand in either place.
template <int kScale>
__device__ inline void coefficients_of_tile(const HybridSmall& call, const HybridSmallPlan& plan, std::int64_t set,
                                            int tile, const TermsOfSet& terms, Shared& shared) {
  constexpr int kTile = kSide * kScale, kPitch = kTile + 1;
  const int count = call.sizes.rows;
  const TilePlace place = place_of_tile(tile, plan.blocks);
  const int i_first = place.row * kTile, j_first = place.column * kTile;
  const bool is_diagonal = place.row == place.column;
  const std::int64_t of_set = set * count;
  float* pairs = plan.pairs + of_set * plan.pair_pitch;
  __syncthreads();  // the last tile has been read
#pragma unroll 1
  for (int m = 0; m < kScale; ++m) {
    const int in_tile = thread_y() + kSide * m, i = i_first + in_tile;
    float distances[kScale], targets[kScale], weights[kScale];
    double sums[kScale];
#pragma unroll
    for (int n = 0; n < kScale; ++n) {
      const int j = j_first + thread_x() + kSide * n;
      const std::int64_t at = (of_set + i) * plan.pair_pitch + j;
      const bool is_pair = i < j && j < count;
      distances[n] = is_pair ? plan.pairs[at] : 0.0f;
      targets[n] = is_pair && call.sizes.target ? plan.targets[at] : not_a_number();
      weights[n] = is_pair && call.sizes.target && call.sizes.weights ? plan.weights[at] : 1.0f;
      const bool is_judged = is_pair && call.sizes.triplets > 0;
      sums[n] = is_judged ? static_cast<double>(plan.pair_sums[(of_set + i) * count + j]) : 0.0;
    }
#pragma unroll
    for (int n = 0; n < kScale; ++n) {
      const int j = j_first + thread_x() + kSide * n;
      double slope = sums[n] * terms.by_triplet;
      if (call.beta != 0.0 && targets[n] == targets[n]) {
        const double by_r = terms.by_h * (targets[n] - terms.centre_h) + terms.by_d * (distances[n] - terms.centre_d);
        slope -= call.beta * weights[n] * by_r;
      }
      // a pair that nobody asked for may have no distance
      float coefficient = 0.0f;
      if (i < j && j < count && slope != 0.0) {
        coefficient = static_cast<float>(slope * steepness(distances[n], call.metric));
      }
      shared.tiles[0][in_tile * kPitch + thread_x() + kSide * n] = coefficient;
      shared.tiles[1][in_tile * kPitch + thread_x() + kSide * n] =
          coefficient == 0.0f ? 0.0f : coefficient * distances[n];
    }
  }
  __syncthreads();

  if (threadIdx.x < 4 * kTile) {  // two kinds of sums, of the rows of the tile and of those of its mirror image
    const int kind = threadIdx.x / (2 * kTile), in_tile = threadIdx.x % kTile;
    const bool is_mirrored = threadIdx.x / kTile % 2 != 0;
    float sum = 0.0f;
    const float* tile_of_kind = shared.tiles[kind];
    if (is_diagonal || !is_mirrored) {
      for (int k = 0; k < kTile; ++k) sum += tile_of_kind[in_tile * kPitch + k];
    }
    if (is_diagonal || is_mirrored) {
      for (int k = 0; k < kTile; ++k) sum += tile_of_kind[k * kPitch + in_tile];
    }
    const int row = (is_mirrored ? j_first : i_first) + in_tile, partner = is_mirrored ? place.row : place.column;
    if (row < count && !(is_diagonal && is_mirrored)) {
      plan.row_sums[((set * 2 + kind) * plan.blocks + partner) * count + row] = sum;
    }
  }
#pragma unroll 1
  for (int m = 0; m < kScale; ++m) {
    const int y = thread_y() + kSide * m;
#pragma unroll
    for (int n = 0; n < kScale; ++n) {
      const int x = thread_x() + kSide * n;
      const float here = shared.tiles[0][y * kPitch + x], there = shared.tiles[0][x * kPitch + y];
      if (i_first + y < count && j_first + x < plan.pair_pitch) {
        pairs[static_cast<std::int64_t>(i_first + y) * plan.pair_pitch + j_first + x] =
            is_diagonal && y > x ? there : here;
      }
      if (!is_diagonal && j_first + y < count) {
        pairs[static_cast<std::int64_t>(j_first + y) * plan.pair_pitch + i_first + x] = there;
      }
    }
  }
}

template <int kLargestScale>
__device__ inline void finish_sets(const HybridSmall& call, const HybridSmallPlan& plan, Shared& shared) {
  const HybridSmallSizes& sizes = call.sizes;
  const bool with_tiles = sizes.gradient && plan.tiles > 0;
  const std::int64_t of_one_set = with_tiles ? plan.tiles : 1;
  const Share share = share_of_block(sizes.sets * of_one_set);
  std::int64_t known = -1;
  TermsOfSet terms = {};
  for (std::int64_t item = share.first; item < share.last; ++item) {
    const std::int64_t set = item / of_one_set;
    const int tile = static_cast<int>(item % of_one_set);
    if (set != known) {
      known = set;
      terms = terms_of_set(call, plan, set, shared);
    }
    if (tile == 0 && threadIdx.x == 0) {
      call.losses[set] = static_cast<float>(terms.loss);
      call.terms[set] = static_cast<float>(terms.triplet);
      call.terms[call.terms_stride + set] = static_cast<float>(terms.r);
      call.terms[2 * call.terms_stride + set] = static_cast<float>(terms.accuracy);
    }
    if (!with_tiles) continue;
    switch (plan.pair_scale) {
      case 1: coefficients_of_tile<1>(call, plan, set, tile, terms, shared); break;
      case 2: coefficients_of_tile<2>(call, plan, set, tile, terms, shared); break;
      default:
        if constexpr (kLargestScale == 4) coefficients_of_tile<4>(call, plan, set, tile, terms, shared);
    }
  }
}

}  // namespace bgs::cuda
