// What a tile of pairs adds to the correlation: the observed targets and weights of a stretch of a row, and moments.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/elements.h"
#include "cpu/hybrid_loss.h"
#include "cpu/rows.h"
#include "cpu/vector.h"

namespace bgs::cpu::BGS_ISA {

// Weighted sums over pairs of distances d and targets h. float64 holds the products of two float32 exactly.
struct Moments {
  double weight = 0, d = 0, h = 0, dd = 0, hh = 0, dh = 0;
  std::int64_t observed = 0;

  void add(const Moments& other) {
    weight += other.weight;
    d += other.d;
    h += other.h;
    dd += other.dd;
    hh += other.hh;
    dh += other.dh;
    observed += other.observed;
  }
};

// How r changes with a distance: by weight * (by_target * (h - mean_h) + by_distance * (d - mean_d)).
struct Slopes {
  float by_target = 0, by_distance = 0, mean_h = 0, mean_d = 0;
};

// The correlation of a set, as bgs_kernels.rsa.reference.correlate defines it, and its slopes.
inline double correlation(const Moments& sums, bool centred, bool bounded, bool target_bounded, Slopes* slopes) {
  // a distance or an observed target that is not finite makes r NaN, at any weight
  const double undefined = 0 * (sums.d + sums.h + sums.dd + sums.hh);
  const double weight = sums.weight == 0 ? 1 : sums.weight;
  const double mean_d = sums.d / weight, mean_h = sums.h / weight;
  const double from_d = centred ? mean_d : 0, from_h = centred ? mean_h : 0;
  const double variance_d = sums.dd / weight - from_d * from_d, variance_h = sums.hh / weight - from_h * from_h;
  const auto still = [](double variance, double mean, bool unit) {
    const double size = unit && std::fabs(mean) < 1 ? 1 : std::fabs(mean);
    const double floor = kRounding * size;
    return variance <= floor * floor;
  };
  const float nan_or_zero = static_cast<float>(undefined);
  *slopes = {nan_or_zero, nan_or_zero, 0, 0};
  if (sums.observed < 2 || still(variance_d, mean_d, bounded) || still(variance_h, mean_h, target_bounded)) {
    return undefined;
  }
  const double deviations = std::sqrt(variance_d) * std::sqrt(variance_h);
  const double r = (sums.dh / weight - from_d * from_h) / deviations;
  *slopes = {static_cast<float>(1 / (weight * deviations) + undefined),
             static_cast<float>(-r / (weight * variance_d) + undefined), static_cast<float>(from_h),
             static_cast<float>(from_d)};
  return r + undefined;
}

// The targets of one set and their weights.
class Targets {
 public:
  Targets(const HybridLoss& given, std::int64_t set) : given_(given), set_(set) {}

  // Call for the dense targets and the mask of a row from the memory, so that they come while others are gone through.
  void call_for(std::int64_t row, std::int64_t first, std::int64_t count) const {
    const Tensor &target = given_.target, &mask = given_.mask;
    if (!target || target.dtype != DType::kFloat32 || target.stride[2] != 1) return;
    prefetch(static_cast<const float*>(target.data) + offset(target, row, first), count);
    if (!mask || mask.stride[2] != 1) return;
    prefetch(static_cast<const std::uint8_t*>(mask.data) + offset(mask, row, first), count);
  }

  // A vector of pairs: their targets and weights, 0 and 0 where a pair is unobserved, and on the diagonal and below it.
  struct Pairs {
    Floats h, weights;
  };

  // Call use(line) for row `row` of the pairs and `count` columns from `first` on: line.for_each(body) calls
  // body(place, pairs) for the vector of pairs that begins `place` columns on; those that lie below the diagonal
  // altogether are left out. `made` holds the distances of target embeddings, and is overwritten.
  template <class Use>
  void with_line(std::int64_t row, std::int64_t first, std::int64_t count, float* made, const Use& use) const {
    const std::int64_t hidden = row + 1 - first < 0 ? 0 : row + 1 - first;
    const std::int64_t begin = hidden == 0 ? 0 : (hidden - 1) / kWidth * kWidth;
    if (begin >= count) return;
    const Tensor &target = given_.target, &mask = given_.mask;
    if (target && target.dtype == DType::kFloat32 && target.stride[2] == 1 && !given_.weights &&
        (!mask || mask.stride[2] == 1)) {
      const float* from = static_cast<const float*>(target.data) + offset(target, row, first);
      const std::int64_t whole = begin < hidden ? begin + kWidth : begin;
      if (!mask) return use(LineInPlace<false>{begin, whole, hidden, count, from, nullptr});
      const auto* seen = static_cast<const std::uint8_t*>(mask.data) + offset(mask, row, first);
      return use(LineInPlace<true>{begin, whole, hidden, count, from, seen});
    }
    alignas(64) float own[kMostColumns], weights[kMostColumns];
    float* const h = made != nullptr ? made : own;
    read_row(row, first, hidden, count, h, weights);
    use(LineInBuffers{begin, count, h, weights});
  }

  static constexpr std::int64_t kMostColumns = 256;  // of a tile

 private:
  template <class Number>
  static void prefetch(const Number* from, std::int64_t count) {
    constexpr std::int64_t kLine = 64 / sizeof(Number);
    for (std::int64_t k = 0; k < count; k += kLine) __builtin_prefetch(from + k, 0, 2);
    if (count > 0) __builtin_prefetch(from + count - 1, 0, 2);  // the first number seldom begins a line
  }

  // Targets in float32 side by side, and bytes that say which were observed: they are read where they lie.
  template <bool kMasked>
  struct LineInPlace {
    std::int64_t begin, whole, hidden, count;  // vectors before `whole` are not all pairs
    const float* from;
    const std::uint8_t* seen;

    template <class Body>
    [[gnu::always_inline]] void for_each(const Body& body) const {
      if (begin < whole) body(begin, at_edge(begin));
      std::int64_t place = whole;
      for (; place + kWidth <= count; place += kWidth) {
        const Floats value = load(from + place);
        Ints there = value == value;
        if (kMasked) there &= load_bytes(seen + place) != 0;
        body(place, Pairs{there ? value : Floats{}, there ? all(1.0f) : Floats{}});
      }
      if (place < count) body(place, at_edge(place));
    }

    [[gnu::noinline]] Pairs at_edge(std::int64_t place) const {
      const std::int64_t left = count - place < kWidth ? count - place : kWidth;
      const Ints lane = numbered() + static_cast<std::int32_t>(place);
      const Floats value = load_first(left, from + place);
      Ints there =
          (value == value) & (lane >= static_cast<std::int32_t>(hidden)) & (lane < static_cast<std::int32_t>(count));
      if (kMasked) there &= load_first_bytes(left, seen + place) != 0;
      return {there ? value : Floats{}, there ? all(1.0f) : Floats{}};
    }
  };

  struct LineInBuffers {
    std::int64_t begin, count;
    const float *h, *weights;

    template <class Body>
    [[gnu::always_inline]] void for_each(const Body& body) const {
      for (std::int64_t place = begin; place < count; place += kWidth) {
        body(place, Pairs{load(h + place), load(weights + place)});
      }
    }
  };

  // Complete the targets h of the pairs from `hidden` on and find their weights, up to a whole vector: 0 and 0 where
  // unobserved and where there is no pair. Without a target h holds the distances of target embeddings already.
  void read_row(std::int64_t row, std::int64_t first, std::int64_t hidden, std::int64_t count, float* h,
                float* weights) const {
    const bool dense = static_cast<bool>(given_.target);
    if (dense) read(given_.target, offset(given_.target, row, first), given_.target.stride[2], count, h);
    if (given_.weights) {
      read(given_.weights, offset(given_.weights, row, first), given_.weights.stride[2], count, weights);
    } else {
      for (std::int64_t each = 0; each < count; ++each) weights[each] = 1.0f;
    }
    if (given_.mask) {
      const auto* mask = static_cast<const std::uint8_t*>(given_.mask.data) + offset(given_.mask, row, first);
      const std::int64_t step = given_.mask.stride[2];
      for (std::int64_t each = 0; each < count; ++each) weights[each] = mask[each * step] ? weights[each] : 0.0f;
    }
    for (std::int64_t each = 0; each < hidden && each < count; ++each) weights[each] = 0;
    for (std::int64_t each = 0; each < count; ++each) {
      const bool missing = dense && h[each] != h[each];
      weights[each] = missing ? 0.0f : weights[each];
      h[each] = weights[each] == 0 ? 0.0f : h[each];
    }
    for (std::int64_t each = count; each < up_to(count, kWidth); ++each) h[each] = weights[each] = 0;
  }

  std::int64_t offset(const Tensor& tensor, std::int64_t row, std::int64_t column) const {
    return set_ * tensor.stride[0] + row * tensor.stride[1] + column * tensor.stride[2];
  }

  const HybridLoss& given_;
  std::int64_t set_;
};

// The moments of a tile while it is gone through. Where weights are 0 or 1, and targets 0 where they are 0, much need not
// be multiplied.
template <bool kWeighted>
class MomentSums {
 public:
  // Add a vector of pairs; where the weight is 0 the target is.
  void add(Floats distances, Floats h, Floats weights) {
    const Floats weighted = weights * distances;
    const Doubles none{}, one = Doubles{} + 1.0;
    for (int half = 0; half < 2; ++half) {
      const Doubles w = widened(weights, half), y = widened(h, half);
      const Doubles wx = kWeighted ? w * widened(distances, half) : widened(weighted, half);
      const Doubles x = kWeighted ? widened(distances, half) : wx, wy = kWeighted ? w * y : y;
      if (kWeighted) observed_ += w != 0 ? one : none;
      weight_ += w;
      d_ += wx;
      h_ += wy;
      dd_ += wx * x;
      hh_ += wy * y;
      dh_ += wy * x;
    }
  }

  void add(const MomentSums& other) {
    weight_ += other.weight_;
    d_ += other.d_;
    h_ += other.h_;
    dd_ += other.dd_;
    hh_ += other.hh_;
    dh_ += other.dh_;
    observed_ += other.observed_;
  }

  Moments total() const {
    const double observed = sum(kWeighted ? observed_ : weight_);
    return {sum(weight_), sum(d_), sum(h_), sum(dd_), sum(hh_), sum(dh_), static_cast<std::int64_t>(observed)};
  }

 private:
  Doubles weight_{}, d_{}, h_{}, dd_{}, hh_{}, dh_{}, observed_{};
};

// Replace the products of a row with `count` others by distances.
inline void to_distances(Metric metric, float size, const float* sizes, std::int64_t count, float* values) {
  with_distance(metric, [&](auto distance) {
    for (std::int64_t each = 0; each < count; each += kWidth) {
      store(values + each, distance(all(size) + load(sizes + each), load(values + each)));
    }
  });
}

// Replace the distances of a line of pairs by the derivatives of the loss by |x - y|^2 (under "dot", by the distance).
template <class Distance, class Line>
inline void to_derivatives(Distance distance, const Slopes& slopes, const Line& line, float* values) {
  const Floats by_target = all(slopes.by_target), by_distance = all(slopes.by_distance), mean_h = all(slopes.mean_h),
               mean_d = all(slopes.mean_d);
  line.for_each([=](std::int64_t place, Targets::Pairs pairs) __attribute__((always_inline)) {
    const Floats d = load(values + place);
    const Floats by_r = by_target * (pairs.h - mean_h) + by_distance * (d - mean_d);
    store(values + place, pairs.weights * by_r * distance.slope(d));
  });
}

}  // namespace bgs::cpu::BGS_ISA
