// Whether judgments name items that there are.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace bgs {

// Say whether every triplet of (sets, count, 3) integers names three different rows, none negative and all below `rows`.
bool are_sound(const Tensor& triplets, std::int64_t sets, std::int64_t count, std::int64_t rows, int threads);

}  // namespace bgs
