#include "cpu/rank_correlation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/kendall.h"
#include "cpu/parts.h"
#include "cpu/ranks.h"
#include "cpu/scratch.h"

namespace bgs {

namespace {

// Sums are made of the sums of blocks of this many numbers, in order, however many threads make them.
constexpr std::int64_t kBlock = 1 << 13;

// Sums term(k) for k below `count`.
template <typename Term>
double sum(std::int64_t count, int threads, const Term& term) {
  const std::int64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<double> sums(static_cast<std::size_t>(blocks));
  const int workers = Parts(count, threads).number;
#pragma omp parallel for num_threads(workers) schedule(static)
  for (std::int64_t block = 0; block < blocks; ++block) {
    double mine = 0;
    for (std::int64_t k = block * kBlock; k < std::min(count, (block + 1) * kBlock); ++k) mine += term(k);
    sums[static_cast<std::size_t>(block)] = mine;
  }
  double total = 0;
  for (const double each : sums) total += each;
  return total;
}

template <typename T>
const T* row_of(const Tensor& tensor, std::int64_t set, std::int64_t row) {
  return static_cast<const T*>(tensor.data) + set * tensor.stride[0] + row * tensor.stride[1];
}

// The observed pairs of one set, in the order of the upper triangle's rows.
template <typename T>
struct Pairs {
  explicit Pairs(std::int64_t count) : count(count), distances(count), targets(count) {}

  std::int64_t count;
  Scratch<T> distances, targets;
  bool finite = true;  // all values that have to be
};

template <typename T, typename H>
class Gathering {
 public:
  Gathering(const Tensor& distances, const Tensor& target, const Tensor& observed, std::int64_t set, std::int64_t rows,
            bool nan_observed)
      : distances_(distances), target_(target), observed_(observed), set_(set), rows_(rows),
        nan_observed_(nan_observed) {}

  Pairs<T> gather(Required required, int threads) const {
    const int workers = Parts(rows_ * rows_ / 2, threads).number;
    std::vector<std::int64_t> starts(static_cast<std::size_t>(rows_ + 1), 0);
#pragma omp parallel for num_threads(workers) schedule(dynamic, 16)
    for (std::int64_t row = 0; row < rows_; ++row) {
      std::int64_t here = 0;
      for_observed(row, [&here](std::int64_t, H) { ++here; });
      starts[static_cast<std::size_t>(row + 1)] = here;
    }
    for (std::size_t row = 1; row < starts.size(); ++row) starts[row] += starts[row - 1];
    Pairs<T> pairs(starts.back());
    bool finite = true;
#pragma omp parallel for num_threads(workers) schedule(dynamic, 16) reduction(&& : finite)
    for (std::int64_t row = 0; row < rows_; ++row) {
      const T* const distances = row_of<T>(distances_, set_, row);
      std::int64_t next = starts[static_cast<std::size_t>(row)];
      // what is not finite times 0 is NaN, and stays it in a sum
      T poison = 0;
      for_observed(row, [&](std::int64_t column, H target) {
        const T distance = distances[column * distances_.stride[2]];
        pairs.distances[next] = distance;
        pairs.targets[next] = static_cast<T>(target);
        poison += distance * 0 + pairs.targets[next] * 0;
        ++next;
      });
      if (required == Required::kAll) {
        for (std::int64_t column = row; column < rows_; ++column) poison += distances[column * distances_.stride[2]] * 0;
      }
      finite = finite && poison == 0;
    }
    pairs.finite = finite;
    return pairs;
  }

 private:
  template <typename Use>
  void for_observed(std::int64_t row, const Use& use) const {
    const H* const targets = row_of<H>(target_, set_, row);
    const bool* const observed = observed_ ? row_of<bool>(observed_, set_, row) : nullptr;
    for (std::int64_t column = row + 1; column < rows_; ++column) {
      const H target = targets[column * target_.stride[2]];
      if (observed != nullptr && !observed[column * observed_.stride[2]]) continue;
      if (target == target || nan_observed_) use(column, target);
    }
  }

  const Tensor& distances_;
  const Tensor& target_;
  const Tensor& observed_;
  std::int64_t set_, rows_;
  bool nan_observed_;
};

template <typename T>
bool is_still(const T* values, std::int64_t count, double rounding, bool bounded, int threads) {
  const double number = static_cast<double>(count);
  const double mean = sum(count, threads, [=](std::int64_t k) { return static_cast<double>(values[k]); }) / number;
  const double squares = sum(count, threads, [=](std::int64_t k) {
    const double deviation = static_cast<double>(values[k]) - mean;
    return deviation * deviation;
  });
  const double size = bounded ? std::max(std::abs(mean), 1.0) : std::abs(mean);
  return squares / number <= rounding * size * rounding * size;
}

template <typename T>
double spearman(const Pairs<T>& pairs, int threads) {
  const std::int64_t count = pairs.count;
  const Scratch<double> ranks(count), target_ranks(count);
  fractional_ranks(pairs.distances.data(), 1, count, ranks.data(), threads);
  fractional_ranks(pairs.targets.data(), 1, count, target_ranks.data(), threads);
  const double mean = 0.5 * static_cast<double>(count + 1);
  const auto products = [=](const double* one, const double* other) {
    return sum(count, threads, [=](std::int64_t k) { return (one[k] - mean) * (other[k] - mean); });
  };
  return products(ranks.data(), target_ranks.data()) / std::sqrt(products(ranks.data(), ranks.data())) /
         std::sqrt(products(target_ranks.data(), target_ranks.data()));
}

template <typename T>
double correlate(const Pairs<T>& pairs, const StillRule& rule, RankMethod method, int threads) {
  if (!pairs.finite) return std::numeric_limits<double>::quiet_NaN();
  if (pairs.count < 2 || is_still(pairs.distances.data(), pairs.count, rule.rounding, rule.bounded, threads) ||
      is_still(pairs.targets.data(), pairs.count, rule.rounding, rule.target_bounded, threads)) {
    return 0;
  }
  if (method == RankMethod::kSpearman) return spearman(pairs, threads);
  const Concordance counts = concordance(pairs.distances.data(), pairs.targets.data(), pairs.count, threads);
  return method == RankMethod::kTauA ? counts.tau_a() : counts.tau_b();
}

template <typename T, typename H>
void correlate_sets(const Tensor& distances, const Tensor& target, const Tensor& observed, std::int64_t sets,
                    std::int64_t rows, Required required, bool nan_observed, const StillRule& rule, RankMethod method,
                    double* correlations, int threads) {
  const auto run = [&](std::int64_t set, int with) {
    const Gathering<T, H> gathering(distances, target, observed, set, rows, nan_observed);
    correlations[set] = correlate(gathering.gather(required, with), rule, method, with);
  };
  if (rows * rows / 2 >= kSmallestPart || sets < threads) {
    for (std::int64_t set = 0; set < sets; ++set) run(set, threads);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (std::int64_t set = 0; set < sets; ++set) run(set, 1);
}

}  // namespace

void rank_correlations(const Tensor& distances, const Tensor& target, const Tensor& observed, std::int64_t sets,
                       std::int64_t rows, Required required, bool nan_observed, const StillRule& rule,
                       RankMethod method, double* correlations, int threads) {
  const bool wide = distances.dtype == DType::kFloat64, wide_target = target.dtype == DType::kFloat64;
  const auto run = wide ? (wide_target ? correlate_sets<double, double> : correlate_sets<double, float>)
                        : (wide_target ? correlate_sets<float, double> : correlate_sets<float, float>);
  run(distances, target, observed, sets, rows, required, nan_observed, rule, method, correlations, threads);
}

}  // namespace bgs
