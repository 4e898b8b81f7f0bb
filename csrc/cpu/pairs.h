// What a tile of pairs adds to the correlation: the observed targets and weights of a stretch of a row, and moments.
#pragma once

#include <cmath>
#include <cstdint>

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

  // Call for the dense targets of `rows` rows from the memory, so that they come while products are made.
  void call_for(std::int64_t row, std::int64_t rows, std::int64_t first, std::int64_t count) const {
    const Tensor& target = given_.target;
    if (!target || target.dtype != DType::kFloat32 || target.stride[2] != 1) return;
    for (std::int64_t each = 0; each < rows; ++each) {
      const float* from = static_cast<const float*>(target.data) + offset(target, row + each, first);
      for (std::int64_t k = 0; k < count; k += 16) __builtin_prefetch(from + k, 0, 2);
    }
  }

  // Complete the targets h of pairs (row, first..first+count-1) and find their weights; 0 and 0 where unobserved. For
  // target embeddings h holds their distances already, else anything.
  void read_row(std::int64_t row, std::int64_t first, std::int64_t count, float* h, float* weights) const {
    const bool dense = static_cast<bool>(given_.target);
    if (dense && given_.target.dtype == DType::kFloat32 && given_.target.stride[2] == 1 && !given_.weights &&
        !given_.mask) {
      return read_plain_row(row, first, count, h, weights);
    }
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
    for (std::int64_t each = 0; each < row + 1 - first && each < count; ++each) weights[each] = 0;
    for (std::int64_t each = 0; each < count; ++each) {
      const bool missing = dense && h[each] != h[each];
      weights[each] = missing ? 0.0f : weights[each];
      h[each] = weights[each] == 0 ? 0.0f : h[each];
    }
  }

 private:
  // The same for the usual case, without passes over what is not there.
  void read_plain_row(std::int64_t row, std::int64_t first, std::int64_t count, float* h, float* weights) const {
    const float* from = static_cast<const float*>(given_.target.data) + offset(given_.target, row, first);
    const std::int64_t hidden = row + 1 - first < 0 ? 0 : row + 1 - first < count ? row + 1 - first : count;
    for (std::int64_t each = 0; each < hidden; ++each) h[each] = weights[each] = 0;
    for (std::int64_t each = hidden; each < count; ++each) {
      const float value = from[each];
      weights[each] = value == value ? 1.0f : 0.0f;
      h[each] = value == value ? value : 0.0f;
    }
  }

  std::int64_t offset(const Tensor& tensor, std::int64_t row, std::int64_t column) const {
    return set_ * tensor.stride[0] + row * tensor.stride[1] + column * tensor.stride[2];
  }

  const HybridLoss& given_;
  std::int64_t set_;
};

// The moments of a tile while it is gone through.
class MomentSums {
 public:
  explicit MomentSums(bool weighted) : weighted_(weighted) {}

  // Add the pairs of a stretch; `count` is a multiple of kWidth, what is beyond the stretch has weight 0 and is finite.
  void add(const float* d, const float* h, const float* weights, std::int64_t count) {
    if (weighted_) {
      add_as<true>(d, h, weights, count);
    } else {
      add_as<false>(d, h, weights, count);
    }
  }

  Moments total() const {
    const double observed = sum(weighted_ ? observed_ : weight_);
    return {sum(weight_), sum(d_), sum(h_), sum(dd_), sum(hh_), sum(dh_), static_cast<std::int64_t>(observed)};
  }

 private:
  // Where weights are 0 or 1, and targets 0 where they are 0, much need not be multiplied.
  template <bool kWeighted>
  void add_as(const float* d, const float* h, const float* weights, std::int64_t count) {
    Doubles weight = weight_, d_sum = d_, h_sum = h_, dd = dd_, hh = hh_, dh = dh_, observed = observed_;
    const Doubles one = Doubles{} + 1.0, none{};
    for (std::int64_t each = 0; each < count; each += kHalf) {
      const Doubles w = load_wide(weights + each), x = load_wide(d + each), y = load_wide(h + each);
      const Doubles wx = w * x, wy = kWeighted ? w * y : y;
      if (kWeighted) observed += w != 0 ? one : none;
      weight += w;
      d_sum += wx;
      h_sum += wy;
      dd += wx * x;
      hh += wy * y;
      dh += wy * x;
    }
    weight_ = weight;
    d_ = d_sum;
    h_ = h_sum;
    dd_ = dd;
    hh_ = hh;
    dh_ = dh;
    observed_ = observed;
  }

  bool weighted_;
  Doubles weight_{}, d_{}, h_{}, dd_{}, hh_{}, dh_{}, observed_{};
};

// Replace the products of a row with `count` others by distances.
inline void to_distances(DistanceOf distance, float size, const float* sizes, std::int64_t count, float* values) {
  for (std::int64_t each = 0; each < count; each += kWidth) {
    store(values + each, distance(all(size) + load(sizes + each), load(values + each)));
  }
}

// Replace distances by the derivative of the loss by |x - y|^2 (under "dot", by the distance).
inline void to_derivatives(DistanceOf distance, const Slopes& slopes, const float* h, const float* weights,
                           std::int64_t count, float* values) {
  for (std::int64_t each = 0; each < count; each += kWidth) {
    const Floats d = load(values + each);
    const Floats by_r = all(slopes.by_target) * (load(h + each) - all(slopes.mean_h)) +
                        all(slopes.by_distance) * (d - all(slopes.mean_d));
    store(values + each, load(weights + each) * by_r * distance.slope(d));
  }
}

}  // namespace bgs::cpu::BGS_ISA
