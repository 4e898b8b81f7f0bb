// Rows of embeddings made ready to be multiplied: scaled to unit length where the metric compares directions, moved to
// a common origin, and laid out for products; and the way back of a gradient through all of that.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/elements.h"
#include "cpu/hybrid_loss.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/product.h"
#include "cpu/vector.h"

namespace bgs::cpu::BGS_ISA {

// bgs_kernels.pairwise.reference.ROUNDING: the relative size of what counts as rounding error.
constexpr float kRounding = 0x1p-18f;

inline std::int64_t up_to(std::int64_t count, std::int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// A row stride that is at least `count` and an odd number of cache lines, so that columns spread over all sets of a cache.
inline std::int64_t spread_stride(std::int64_t count) { return (up_to(count, kPanel) / 16 | 1) * 16; }

inline bool is_bounded(Metric metric) { return metric == Metric::kCosine || metric == Metric::kCorrelation; }

class Rows {
 public:
  Rows() = default;
  Rows(std::int64_t count, std::int64_t columns, Metric metric)
      : count_(count),
        padded_(up_to(count, kPanel)),
        columns_(columns),
        stride_(spread_stride(columns)),
        metric_(metric),
        plain_(padded_ * stride_),
        sizes_(padded_),
        largest_(padded_),
        lengths_(padded_),
        origin_(stride_) {}

  std::int64_t padded() const { return padded_; }
  std::int64_t columns() const { return columns_; }
  std::int64_t stride() const { return stride_; }
  Metric metric() const { return metric_; }

  // (padded, stride) row-major; a row that holds NaN or an infinity is all zero here, so that a weight of zero hides it.
  // Padding is zero.
  const float* plain() const { return plain_.get(); }
  // |x|^2, and 1 more for a row without a direction, which is 1 away from all others; 0 under "dot". NaN for a row that
  // holds NaN or an infinity.
  const float* sizes() const { return sizes_.get(); }

  // Lay out `count` rows, a multiple of kPanel, from `first` on for the right side of a product: column after column,
  // `stride` apart.
  void pack(std::int64_t first, std::int64_t count, float* out, std::int64_t stride) const {
    constexpr std::int64_t kTogether = 16;  // columns of a cache line
    for (std::int64_t row = 0; row < count; row += kPanel) {
      const float* from = plain_.get() + (first + row) * stride_;
      for (std::int64_t column = 0; column < columns_; column += kTogether) {
        const std::int64_t end = column + kTogether < columns_ ? column + kTogether : columns_;
        for (std::int64_t each = 0; each < kPanel; ++each) {
          for (std::int64_t k = column; k < end; ++k) out[k * stride + row + each] = from[each * stride_ + k];
        }
      }
    }
  }

  // The origin that the rows were moved to, (stride).
  const float* origin() const { return origin_.get(); }

  // Read set `set` of a tensor (sets, count, columns); rows from `real` on are padding and taken for zero. Rows that are
  // compared with others need the same origin as those; by default it is their mean.
  void prepare(const Tensor& tensor, std::int64_t set, std::int64_t real, int threads, const float* origin = nullptr) {
    const std::int64_t groups = padded_ / kPanel;
    parallel_for(groups, threads, [&](std::int64_t group, int) {
      for (std::int64_t row = group * kPanel; row < (group + 1) * kPanel; ++row) read_row(tensor, set, row, real);
    });
    if (origin == nullptr) {
      find_origin(threads);
    } else {
      std::memcpy(origin_.get(), origin, sizeof(float) * static_cast<std::size_t>(stride_));
    }
    parallel_for(groups, threads, [&](std::int64_t group, int) {
      for (std::int64_t row = group * kPanel; row < (group + 1) * kPanel; ++row) centre_row(row);
    });
  }

  // Turn the gradient by a row as it is multiplied, (stride) floats that are overwritten, into that by the row as given.
  void differentiate_row(std::int64_t row, float* gradient, float* out) const {
    if (is_bounded(metric_)) {
      if (lengths_[row] == 0) {
        for (std::int64_t k = 0; k < columns_; ++k) out[k] = gradient[k] * 0;
        return;
      }
      const float* x = plain_.get() + row * stride_;
      Floats along{};
      for (std::int64_t k = 0; k < padded_columns(); k += kWidth) {
        along += load(gradient + k) * (load(x + k) + load(origin_.get() + k));
      }
      const float radial = sum(along);
      const float length = lengths_[row], largest = largest_[row];
      for (std::int64_t k = 0; k < columns_; ++k) {
        gradient[k] = (gradient[k] - radial * (x[k] + origin_[k])) * (1 / length);
      }
      const float mean = metric_ == Metric::kCorrelation ? mean_of(gradient) : 0.0f;
      for (std::int64_t k = 0; k < columns_; ++k) out[k] = gradient[k] - mean;
      divide(out, columns_, largest);
    } else {
      for (std::int64_t k = 0; k < columns_; ++k) out[k] = gradient[k];
    }
  }

 private:
  std::int64_t padded_columns() const { return up_to(columns_, kPanel); }

  void clear(std::int64_t row) {
    float* x = plain_.get() + row * stride_;
    for (std::int64_t k = 0; k < stride_; ++k) x[k] = 0;
  }

  // Leaves the row scaled in `plain_`, and in `sizes_` 0, 1 if it has no direction, or NaN if it is not finite.
  void read_row(const Tensor& tensor, std::int64_t set, std::int64_t row, std::int64_t real) {
    float* x = plain_.get() + row * stride_;
    const bool bounded = is_bounded(metric_);
    largest_[row] = 1;
    lengths_[row] = 1;
    if (row >= real) {
      clear(row);
      sizes_[row] = bounded ? 1.0f : 0.0f;
      lengths_[row] = 0;
      return;
    }
    read(tensor, set * tensor.stride[0] + row * tensor.stride[1], tensor.stride[2], columns_, x);
    for (std::int64_t k = columns_; k < stride_; ++k) x[k] = 0;
    Floats top{}, poison{};
    for (std::int64_t k = 0; k < padded_columns(); k += kWidth) {
      const Floats value = load(x + k), size = magnitude(value);
      top = size > top ? size : top;
      poison += value - value;
    }
    if (sum(poison) != 0) {  // NaN: the row holds one, or an infinity
      sizes_[row] = sum(poison);
      clear(row);
      return;
    }
    sizes_[row] = 0;
    if (!bounded) return;
    const float size = largest(top);
    if (size == 0) return make_directionless(row);
    divide(x, columns_, size);  // its largest entry is 1: no square over- or underflows
    if (metric_ == Metric::kCorrelation) {
      const float mean = mean_of(x);
      for (std::int64_t k = 0; k < columns_; ++k) x[k] -= mean;
      top = Floats{};
      for (std::int64_t k = 0; k < padded_columns(); k += kWidth) {
        top = magnitude(load(x + k)) > top ? magnitude(load(x + k)) : top;
      }
      if (largest(top) <= kRounding) return make_directionless(row);
    }
    Floats square{};
    for (std::int64_t k = 0; k < padded_columns(); k += kWidth) square += load(x + k) * load(x + k);
    const float length = std::sqrt(sum(square));
    divide(x, columns_, length);
    largest_[row] = size;
    lengths_[row] = length;
  }

  // Divide by a number above 0; a division of its own for every entry takes four times as long, and is needed where the
  // inverse overflows or loses bits.
  static void divide(float* values, std::int64_t count, float by) {
    if (by > 0x1p-100f && by < 0x1p100f) {
      const float inverse = 1 / by;
      for (std::int64_t k = 0; k < count; ++k) values[k] *= inverse;
    } else {
      for (std::int64_t k = 0; k < count; ++k) values[k] /= by;
    }
  }

  // The mean of a row that is padded with zeros.
  float mean_of(const float* x) const {
    Doubles total{};
    for (std::int64_t k = 0; k < padded_columns(); k += kHalf) total += load_wide(x + k);
    return static_cast<float>(sum(total) / static_cast<double>(columns_));
  }

  void make_directionless(std::int64_t row) {
    clear(row);
    sizes_[row] = 1;
    lengths_[row] = 0;
  }

  // Distances do not depend on the origin, but what cancels in them does: it becomes the mean row.
  void find_origin(int threads) {
    const bool moved = metric_ != Metric::kDot;
    parallel_for(padded_columns() / kPanel, threads, [&](std::int64_t block, int) {
      for (std::int64_t k = block * kPanel; k < (block + 1) * kPanel; k += kWidth) {
        Floats total{};
        if (moved) {
          for (std::int64_t row = 0; row < count_; ++row) total += load(plain_.get() + row * stride_ + k);
        }
        store(origin_.get() + k, total / all(static_cast<float>(count_)));
      }
    });
  }

  void centre_row(std::int64_t row) {
    float* x = plain_.get() + row * stride_;
    const bool finite = sizes_[row] == sizes_[row];
    if (row >= count_) {
      sizes_[row] = 0;
      return;
    }
    if (finite && metric_ != Metric::kDot) {
      Floats square{};
      for (std::int64_t k = 0; k < padded_columns(); k += kWidth) {
        const Floats value = load(x + k) - load(origin_.get() + k);
        store(x + k, value);
        square += value * value;
      }
      sizes_[row] += sum(square);
    }
  }

  std::int64_t count_ = 0, padded_ = 0, columns_ = 0, stride_ = 0;
  Metric metric_ = Metric::kCosine;
  Array<float> plain_, sizes_, largest_, lengths_, origin_;
};

// Distances between rows, from their products with an origin in common.
template <Metric kMetric>
struct DistanceBy {
  // d from the sizes of two rows and their product
  Floats operator()(Floats sizes, Floats product) const {
    if (kMetric == Metric::kDot) return sizes - product;
    Floats squared = sizes - all(2.0f) * product;
    squared = squared < all(kRounding) * sizes ? Floats{} : squared;
    if (kMetric == Metric::kSqEuclidean) return squared;
    if (kMetric == Metric::kEuclidean) return root(squared);
    return all(0.5f) * squared;
  }

  // the derivative of d by |x - y|^2 (by d itself under "dot"), given d; 0 where d has none
  Floats slope(Floats distance) const {
    if (kMetric == Metric::kDot) return all(1.0f);
    const float at_any = kMetric == Metric::kSqEuclidean ? 1.0f : 0.5f;
    const Floats value = kMetric == Metric::kEuclidean ? all(0.5f) / distance : all(at_any);
    return distance == 0 ? Floats{} : value;
  }

  static Floats root(Floats value) {
    Floats result;
    for (int each = 0; each < kWidth; ++each) result[each] = __builtin_sqrtf(value[each]);
    return result;
  }
};

// Call body(DistanceBy<...>) for a metric; rows under "correlation" are prepared such that it is the cosine's.
template <class Body>
inline auto with_distance(Metric metric, const Body& body) {
  switch (metric) {
    case Metric::kEuclidean:
      return body(DistanceBy<Metric::kEuclidean>());
    case Metric::kSqEuclidean:
      return body(DistanceBy<Metric::kSqEuclidean>());
    case Metric::kDot:
      return body(DistanceBy<Metric::kDot>());
    default:
      return body(DistanceBy<Metric::kCosine>());
  }
}

}  // namespace bgs::cpu::BGS_ISA
