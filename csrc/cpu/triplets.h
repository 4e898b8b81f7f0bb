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
constexpr std::int64_t kChunk = 512;

struct TripletSums {
  double loss = 0, right = 0, weight = 0;
};

// The triplets of one set; pairs are ij, ik and jk, of which ij was left together.
class Triplets {
 public:
  Triplets(const HybridLoss& given, std::int64_t set) : given_(given), set_(set) {}

  std::int64_t chunks() const { return (given_.triplet_count + kChunk - 1) / kChunk; }

  std::int64_t chunk_size(std::int64_t chunk) const {
    const std::int64_t left = given_.triplet_count - chunk * kChunk;
    return left < kChunk ? left : kChunk;
  }

  // Read a chunk and call body(each, pair, smaller, larger) with the rows of every pair; false if a row is not there or,
  // where that is asked for, a triplet names one twice.
  template <class Body>
  bool read_pairs(std::int64_t chunk, const Body& body) const {
    alignas(64) std::int32_t named[3][kChunk];
    const std::int64_t count = chunk_size(chunk);
    if (!read_rows(chunk, count, named)) return false;
    constexpr int kFirst[3] = {0, 0, 1}, kSecond[3] = {1, 2, 2};
    std::int32_t repeated = 0;
    for (int pair = 0; pair < 3; ++pair) {
      const std::int32_t* one = named[kFirst[pair]];
      const std::int32_t* two = named[kSecond[pair]];
      for (std::int64_t each = 0; each < count; ++each) {
        repeated |= one[each] == two[each];
        body(each, pair, one[each] < two[each] ? one[each] : two[each], one[each] < two[each] ? two[each] : one[each]);
      }
    }
    return !(given_.distinct && repeated);
  }

  // Sum a chunk up and replace distances[pair][each], room for kChunk, by weighted derivatives, chain rule included.
  TripletSums compute(std::int64_t chunk, float (*distances)[kChunk], bool with_gradient) const {
    return with_distance(given_.metric, [&](auto distance) {
      if (given_.margin_form) return compute_as<kMargin>(distance, chunk, distances, with_gradient);
      if (given_.triplet_targets) return compute_as<kSoft>(distance, chunk, distances, with_gradient);
      return compute_as<kHard>(distance, chunk, distances, with_gradient);
    });
  }

 private:
  enum Form { kMargin, kHard, kSoft };  // the softmax forms: one pair was left together, or shares of the choices

  template <Form kForm, class Distance>
  TripletSums compute_as(Distance distance, std::int64_t chunk, float (*distances)[kChunk], bool with_gradient) const {
    const std::int64_t count = chunk_size(chunk), padded = up_to(count, kWidth);
    alignas(64) float weights[kChunk], shares[kForm == kSoft ? 3 : 1][kForm == kSoft ? kChunk : 1];
    read_weights(chunk, weights);
    for (std::int64_t each = count; each < padded; ++each) {
      weights[each] = 0;
      for (int pair = 0; pair < 3; ++pair) distances[pair][each] = 0;
    }
    if (kForm == kSoft) {
      for (int pair = 0; pair < 3; ++pair) {
        read_shares(chunk, pair, shares[pair]);
        for (std::int64_t each = count; each < padded; ++each) shares[pair][each] = 0;
      }
    }
    const Floats one = all(1.0f), none{}, inverse = all(static_cast<float>(1 / given_.temperature)),
                 margin = all(static_cast<float>(given_.margin));
    Doubles loss_sum{}, right_sum{}, weight_sum{};
    for (std::int64_t each = 0; each < padded; each += kWidth) {
      const Floats near = load(distances[0] + each), far = load(distances[1] + each),
                   other = load(distances[2] + each), weight = load(weights + each);
      // infinite distances count as NaN
      const Floats poison = (near - near) + (far - far) + (other - other);
      const Floats closest = smaller(smaller(near, far), other);
      // a pair that ties with one other of the three is right by a half, with both by a third
      const Ints tied = (near == closest) + (far == closest) + (other == closest);
      const Floats part = tied == -1 ? one : tied == -2 ? all(1.0f / 2) : all(1.0f / 3);
      const Floats right = (near == closest ? part : none) + poison;
      Floats loss, slope[3];
      if (kForm == kMargin) {
        const Floats violation = near - far + margin;
        loss = (violation > 0 ? violation : none) + poison;
        slope[0] = violation > 0 ? one : none;
        slope[1] = -slope[0];
        slope[2] = none;
      } else {
        const Floats apart[3] = {(closest - near) * inverse, (closest - far) * inverse, (closest - other) * inverse};
        Floats likely[3], total{};
        for (int pair = 0; pair < 3; ++pair) {
          likely[pair] = exp_of_negative(apart[pair]);
          total += likely[pair];
        }
        const Floats log_total = log_up_to_three(total), part_of_all = one / total, scale = part_of_all * inverse;
        if (kForm == kSoft) {
          Floats of_all{};
          loss = poison;
          for (int pair = 0; pair < 3; ++pair) {
            const Floats share = load(shares[pair] + each);
            loss += share * (log_total - apart[pair]);
            of_all += share;
          }
          for (int pair = 0; pair < 3; ++pair) {
            slope[pair] = (load(shares[pair] + each) - of_all * likely[pair] * part_of_all) * inverse;
          }
        } else {
          loss = log_total - apart[0] + poison;
          // 1 - p of the likely pair cancels where p is nearly 1
          slope[0] = (likely[1] + likely[2]) * scale;
          slope[1] = -likely[1] * scale;
          slope[2] = -likely[2] * scale;
        }
      }
      const Floats weighted[3] = {weight * loss, weight * right, weight};
      for (int half = 0; half < 2; ++half) {
        loss_sum += widened(weighted[0], half);
        right_sum += widened(weighted[1], half);
        weight_sum += widened(weighted[2], half);
      }
      if (with_gradient) {
        const Floats found[3] = {near, far, other};
        for (int pair = 0; pair < 3; ++pair) {
          store(distances[pair] + each, weight * (slope[pair] + poison) * distance.slope(found[pair]));
        }
      }
    }
    return {sum(loss_sum), sum(right_sum), sum(weight_sum)};
  }

  // Read the rows that a chunk names; false if one is not there.
  bool read_rows(std::int64_t chunk, std::int64_t count, std::int32_t (*named)[kChunk]) const {
    const Tensor& triplets = given_.triplets;
    const std::int64_t first = set_ * triplets.stride[0] + chunk * kChunk * triplets.stride[1];
    if (triplets.stride[1] == 3 && triplets.stride[2] == 1) {  // as they come: read in one go, then divided
      alignas(64) std::int32_t flat[3 * kChunk];
      if (!read_indices(triplets, first, 1, 3 * count, given_.rows, flat)) return false;
      for (std::int64_t each = 0; each < count; ++each) {
        for (int place = 0; place < 3; ++place) named[place][each] = flat[3 * each + place];
      }
      return true;
    }
    bool inside = true;
    for (int place = 0; place < 3; ++place) {
      inside &= read_indices(triplets, first + place * triplets.stride[2], triplets.stride[1], count, given_.rows,
                             named[place]);
    }
    return inside;
  }

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
};

// Copy the entries whose place is at least `begin` and below `end`, in their order, and say how many they are; there is
// room for kWidth more.
inline std::int64_t select(const std::int32_t* places, const float* values, std::int64_t count, std::int32_t begin,
                           std::int32_t end, std::int32_t* own_places, float* own_values) {
  std::int64_t found = 0, each = 0;
#if defined(__AVX512F__)
  for (; each + kWidth <= count; each += kWidth) {
    const __m512i place = _mm512_loadu_si512(places + each);
    const __mmask16 own = _mm512_cmpge_epi32_mask(place, _mm512_set1_epi32(begin)) &
                          _mm512_cmplt_epi32_mask(place, _mm512_set1_epi32(end));
    _mm512_storeu_si512(own_places + found, _mm512_maskz_compress_epi32(own, place));
    _mm512_storeu_ps(own_values + found, _mm512_maskz_compress_ps(own, _mm512_loadu_ps(values + each)));
    found += __builtin_popcount(own);
  }
#endif
  for (; each < count; ++each) {
    own_places[found] = places[each];
    own_values[found] = values[each];
    found += places[each] >= begin && places[each] < end;
  }
  return found;
}

}  // namespace bgs::cpu::BGS_ISA
