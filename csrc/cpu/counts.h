// How often each pair of items was shown and left together in odd-one-out judgments.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace bgs {

// Counts of a pair are added up in 32 bits: there have to be fewer triplets than this.
constexpr std::int64_t kTripletsEnd = std::int64_t{1} << 32;

// Counts triplets (i, j, k) of any integer dtype, stride[0] apart with entries stride[1] apart, k the odd one, into the
// matrices `shown` and `together`, (rows, rows), both symmetric with the diagonal 0. Returns whether every triplet named
// three different rows; where one did not, what the matrices hold means nothing.
bool count_triplets(const Tensor& triplets, std::int64_t count, std::int64_t rows, std::int64_t* shown,
                    std::int64_t* together, int threads);

}  // namespace bgs
