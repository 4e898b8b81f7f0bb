// A stable least-significant-digit radix sort of 64-bit words on some of their bits: what ranks and Kendall's tau sort
// with.
#pragma once

#include <cstdint>

namespace bgs {

// Sorts `count` words by the bits [low, low + width), those of equal bits in the order in which they came. The sorted
// words end up in `words`; `spare` holds as many and is overwritten. The result does not depend on `threads`.
void radix_sort(std::uint64_t* words, std::uint64_t* spare, std::int64_t count, int low, int width, int threads);

}  // namespace bgs
