// Ranks with ties: the places that values take when they are sorted.
#pragma once

#include <cstdint>

namespace bgs {

// Ranks each of `rows` rows of `columns` float or double values (stored one after the other) among the values of its row
// that are not NaN: 1 for the smallest, ties share the mean of their ranks, and the rank of NaN is NaN. -0 equals 0.
template <typename T>
void fractional_ranks(const T* values, std::int64_t rows, std::int64_t columns, double* ranks, int threads);

// Finds for each of `count` values, none of them NaN and at most 2^32, how many are smaller. Returns the number of tied pairs.
template <typename T>
std::int64_t count_smaller(const T* values, std::int64_t count, std::uint32_t* smaller, int threads);

// Writes into `words`, in ascending order of the values, first[position] << `bits` | how many values are smaller.
// Returns the number of tied pairs.
template <typename T>
std::int64_t order_beside(const T* values, const std::uint32_t* first, std::int64_t count, int bits,
                          std::uint64_t* words, int threads);

// The bits of a number, 0 for 0.
int bit_length(std::uint64_t number);

}  // namespace bgs
