// The triplet term: losses, accuracies and derivatives of judgments whose three distances are known.
#pragma once

#include <cstdint>

#include "cpu/elements.h"
#include "cpu/hybrid_loss.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/vector.h"

namespace bgs::cpu::BGS_ISA {

// Judgments that are computed together: the unit of work and of summation.
constexpr std::int64_t kChunk = 1024;

struct TripletSums {
  double loss = 0, right = 0, weight = 0;
};

// The triplets of one set; pairs are ij, ik and jk, of which ij was left together.
class Triplets {
 public:
  Triplets(const HybridLoss& given, std::int64_t set) : given_(given), set_(set) {
    slope_ = {given.metric};
  }

  std::int64_t chunks() const { return (given_.triplet_count + kChunk - 1) / kChunk; }

  std::int64_t chunk_size(std::int64_t chunk) const {
    const std::int64_t left = given_.triplet_count - chunk * kChunk;
    return left < kChunk ? left : kChunk;
  }

  // Read the rows of a chunk, smaller[pair][each] <= larger[pair][each]; false if one is not there.
  bool read_rows(std::int64_t chunk, std::int32_t (*smaller)[kChunk], std::int32_t (*larger)[kChunk]) const {
    const Tensor& all_of_them = given_.triplets;
    std::int32_t named[3][kChunk];
    const std::int64_t count = chunk_size(chunk);
    bool inside = true;
    for (int place = 0; place < 3; ++place) {
      const std::int64_t first =
          set_ * all_of_them.stride[0] + chunk * kChunk * all_of_them.stride[1] + place * all_of_them.stride[2];
      inside &= read_indices(all_of_them, first, all_of_them.stride[1], count, given_.rows, named[place]);
    }
    constexpr int kFirst[3] = {0, 0, 1}, kSecond[3] = {1, 2, 2};
    for (int pair = 0; pair < 3; ++pair) {
      const std::int32_t* one = named[kFirst[pair]];
      const std::int32_t* two = named[kSecond[pair]];
      for (std::int64_t each = 0; each < count; ++each) {
        smaller[pair][each] = one[each] < two[each] ? one[each] : two[each];
        larger[pair][each] = one[each] < two[each] ? two[each] : one[each];
      }
    }
    return inside;
  }

  // Sum a chunk up and replace distances[pair][each], room for kChunk, by weighted derivatives, chain rule included.
  TripletSums compute(std::int64_t chunk, float (*distances)[kChunk], bool with_gradient) const {
    const std::int64_t count = chunk_size(chunk), padded = up_to(count, kWidth);
    alignas(64) float weights[kChunk], shares[3][kChunk];
    read_weights(chunk, weights);
    for (std::int64_t each = count; each < padded; ++each) {
      weights[each] = 0;
      for (int pair = 0; pair < 3; ++pair) distances[pair][each] = 0;
    }
    const bool soft = static_cast<bool>(given_.triplet_targets);
    if (soft) {
      for (int pair = 0; pair < 3; ++pair) {
        read_shares(chunk, pair, shares[pair]);
        for (std::int64_t each = count; each < padded; ++each) shares[pair][each] = 0;
      }
    }
    const Floats one = all(1.0f), none{}, inverse = all(static_cast<float>(1 / given_.temperature)),
                 temperature = all(static_cast<float>(given_.temperature));
    Doubles loss_sum{}, right_sum{}, weight_sum{};
    for (std::int64_t each = 0; each < padded; each += kWidth) {
      const Floats near = load(distances[0] + each), far = load(distances[1] + each),
                   other = load(distances[2] + each), weight = load(weights + each);
      // infinite distances count as NaN
      const Floats poison = (near - near) + (far - far) + (other - other);
      const Floats closest = smaller(smaller(near, far), other);
      const Floats tied = (near == closest ? one : none) + (far == closest ? one : none) +
                          (other == closest ? one : none);
      const Floats right = (near == closest ? one / tied : none) + poison;
      Floats loss, slope[3];
      if (given_.margin_form) {
        const Floats violation = near - far + all(static_cast<float>(given_.margin));
        loss = (violation > 0 ? violation : none) + poison;
        slope[0] = violation > 0 ? one : none;
        slope[1] = -slope[0];
        slope[2] = none;
      } else {
        const Floats apart[3] = {(closest - near) / temperature, (closest - far) / temperature,
                                 (closest - other) / temperature};
        Floats likely[3], total{};
        for (int pair = 0; pair < 3; ++pair) {
          likely[pair] = exp_of_negative(apart[pair]);
          total += likely[pair];
        }
        const Floats log_total = log_up_to_three(total);
        if (soft) {
          Floats of_all{};
          loss = poison;
          for (int pair = 0; pair < 3; ++pair) {
            const Floats share = load(shares[pair] + each);
            loss += share * (log_total - apart[pair]);
            of_all += share;
          }
          for (int pair = 0; pair < 3; ++pair) {
            slope[pair] = (load(shares[pair] + each) - of_all * likely[pair] / total) * inverse;
          }
        } else {
          loss = log_total - apart[0] + poison;
          for (int pair = 0; pair < 3; ++pair) slope[pair] = -likely[pair] / total * inverse;
          // 1 - p of the likely pair cancels where p is nearly 1
          slope[0] = (likely[1] + likely[2]) / total * inverse;
        }
      }
      alignas(64) float weighted[3][kWidth];
      store(weighted[0], weight * loss);
      store(weighted[1], weight * right);
      store(weighted[2], weight);
      for (int half = 0; half < kWidth; half += kHalf) {
        loss_sum += load_wide(weighted[0] + half);
        right_sum += load_wide(weighted[1] + half);
        weight_sum += load_wide(weighted[2] + half);
      }
      if (with_gradient) {
        const Floats distance[3] = {near, far, other};
        for (int pair = 0; pair < 3; ++pair) {
          store(distances[pair] + each, weight * (slope[pair] + poison) * slope_.slope(distance[pair]));
        }
      }
    }
    return {sum(loss_sum), sum(right_sum), sum(weight_sum)};
  }

 private:
  void read_weights(std::int64_t chunk, float* out) const {
    const std::int64_t count = chunk_size(chunk);
    const Tensor& weights = given_.triplet_weights;
    if (weights) {
      read(weights, set_ * weights.stride[0] + chunk * kChunk * weights.stride[1], weights.stride[1], count, out);
    } else {
      for (std::int64_t each = 0; each < count; ++each) out[each] = 1.0f;
    }
  }

  void read_shares(std::int64_t chunk, int pair, float* out) const {
    const Tensor& shares = given_.triplet_targets;
    const std::int64_t first =
        set_ * shares.stride[0] + chunk * kChunk * shares.stride[1] + pair * shares.stride[2];
    read(shares, first, shares.stride[1], chunk_size(chunk), out);
  }

  const HybridLoss& given_;
  std::int64_t set_;
  DistanceOf slope_{};
};

}  // namespace bgs::cpu::BGS_ISA
