// The correlation of the ranks that two geometries give to the pairs of items for which both were observed.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace bgs {

enum class RankMethod : std::int32_t { kSpearman = 0, kTauA = 1, kTauB = 2 };

// When a side counts as not varying: at a variance of at most (rounding * size)^2, where the size is the mean of its
// values or, for bounded ones, 1 if that is larger.
struct StillRule {
  double rounding;
  bool bounded, target_bounded;
};

// Which distances have to be finite for r to be a number: those of observed pairs, or all on and above the diagonal.
enum class Required : std::int32_t { kObserved = 0, kAll = 1 };

// Correlates distances and targets over the observed pairs i < j of each set. All are (sets, rows, rows): distances float
// or double, which is what values are compared as; targets float or double; `observed` bool, or null for all pairs. A
// pair whose target is NaN is not observed or, with `nan_observed`, makes r NaN. Writes one number a set: 0 where fewer
// than two pairs are observed or a side does not vary, NaN where a value that has to be finite is not.
void rank_correlations(const Tensor& distances, const Tensor& target, const Tensor& observed, std::int64_t sets,
                       std::int64_t rows, Required required, bool nan_observed, const StillRule& rule,
                       RankMethod method, double* correlations, int threads);

}  // namespace bgs
