// What the ways to compute the loss of a set have in common: its terms, and the last step of its gradient.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "cpu/hybrid_loss.h"
#include "cpu/memory.h"
#include "cpu/pairs.h"
#include "cpu/rows.h"
#include "cpu/triplets.h"

namespace bgs::cpu::BGS_ISA {

// The rows of a set that are not padding.
inline std::int64_t real_rows(const HybridLoss& given, std::int64_t set) {
  if (!given.lengths) return given.rows;
  std::int32_t length = 0;
  if (!read_indices(given.lengths, set * given.lengths.stride[0], 1, 1, given.rows + 1, &length)) {
    throw std::out_of_range("lengths: out of range");
  }
  return length;
}

inline TripletSums merge(const Array<TripletSums>& parts, const Array<std::int32_t>& wrong, std::int64_t count) {
  TripletSums total;
  for (std::int64_t each = 0; each < count; ++each) {
    if (wrong[each]) throw std::out_of_range("triplets: an index is out of range, or an item named twice");
    total.loss += parts[each].loss;
    total.right += parts[each].right;
    total.weight += parts[each].weight;
  }
  return total;
}

// Write the terms of a set and give the slopes of r.
inline Slopes finish_terms(const HybridLoss& given, std::int64_t set, const TripletSums& sums, const Moments& moments) {
  Slopes slopes;
  const double triplet = sums.loss / (sums.weight == 0 ? 1 : sums.weight);
  double r = std::numeric_limits<double>::quiet_NaN();
  if (given.has_target()) {
    r = correlation(moments, given.centred, is_bounded(given.metric),
                    given.target_embeddings && is_bounded(given.target_metric), &slopes);
  }
  const double loss = given.alpha * triplet - (given.beta != 0 ? given.beta * r : 0);
  given.losses[set] = static_cast<float>(loss);
  if (given.terms != nullptr) {
    given.terms[set] = static_cast<float>(triplet);
    given.terms[given.sets + set] = static_cast<float>(r);
    given.terms[2 * given.sets + set] = static_cast<float>(sums.right / sums.weight);
  }
  return slopes;
}

inline double row_sum(const float* values, std::int64_t count) {
  Doubles totals[4] = {};  // one would have to wait for each addition; `count` is a multiple of kPanel
  for (std::int64_t each = 0; each < count; each += 4 * kHalf) {
    for (int part = 0; part < 4; ++part) totals[part] += load_wide(values + each + part * kHalf);
  }
  return sum((totals[0] + totals[1]) + (totals[2] + totals[3]));
}

// Add a row to the sums of kColumns columns.
template <int kColumns>
inline void add_columns(const float* values, Doubles* totals) {
  for (int part = 0; part < kColumns / kHalf; ++part) totals[part] += load_wide(values + part * kHalf);
}

// Turn the derivatives of a row's pairs into its gradient: `total` is their sum and `products`, as wide as the rows are
// stored, their product with the other rows, which is overwritten.
inline void finish_gradient(const Rows& rows, std::int64_t row, float total, float* products, float* out) {
  const float* x = rows.plain() + row * rows.stride();
  const bool dot = rows.metric() == Metric::kDot;
  for (std::int64_t k = 0; k < up_to(rows.columns(), kPanel); k += kWidth) {
    const Floats by_others = load(products + k);
    store(products + k, dot ? -by_others : all(2.0f) * (all(total) * load(x + k) - by_others));
  }
  rows.differentiate_row(row, products, out);
}

// The same for a row of a set, of which those from `real` on are padding. The products may stand where the gradient goes.
inline void finish_row(const HybridLoss& given, const Rows& rows, std::int64_t set, std::int64_t row,
                       std::int64_t real, float total, float* products) {
  float* out = given.gradient + (set * given.rows + row) * given.columns;
  if (row < real) return finish_gradient(rows, row, total, products, out);
  for (std::int64_t k = 0; k < given.columns; ++k) out[k] = 0;
}

}  // namespace bgs::cpu::BGS_ISA
