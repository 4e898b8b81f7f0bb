#include "cpu/soundness.h"

#include <stdexcept>

namespace bgs {

namespace {

// Judgments that are looked through before it is asked whether one was unsound.
constexpr std::int64_t kChunk = 1 << 14;

template <class Index>
bool are_sound_as(const Tensor& triplets, std::int64_t sets, std::int64_t count, std::int64_t rows, int threads) {
  const Index* const data = static_cast<const Index*>(triplets.data);
  const std::int64_t step = triplets.stride[1], next = triplets.stride[2], chunks = (count + kChunk - 1) / kChunk;
  const auto limit = static_cast<std::uint64_t>(rows);
  std::uint64_t unsound = 0;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) reduction(| : unsound) if (sets * chunks > 4 && threads > 1)
#endif
  for (std::int64_t part = 0; part < sets * chunks; ++part) {
    const std::int64_t first = part % chunks * kChunk, left = count - first;
    const Index* triplet = data + part / chunks * triplets.stride[0] + first * step;
    std::uint64_t wrong = 0;
    for (std::int64_t each = 0; each < (left < kChunk ? left : kChunk); ++each, triplet += step) {
      // a negative index becomes larger than any limit
      const auto i = static_cast<std::uint64_t>(static_cast<std::int64_t>(triplet[0]));
      const auto j = static_cast<std::uint64_t>(static_cast<std::int64_t>(triplet[next]));
      const auto k = static_cast<std::uint64_t>(static_cast<std::int64_t>(triplet[2 * next]));
      wrong |= static_cast<std::uint64_t>(i >= limit) | static_cast<std::uint64_t>(j >= limit) |
               static_cast<std::uint64_t>(k >= limit) | static_cast<std::uint64_t>(i == j) |
               static_cast<std::uint64_t>(i == k) | static_cast<std::uint64_t>(j == k);
    }
    unsound |= wrong;
  }
  static_cast<void>(threads);
  return unsound == 0;
}

}  // namespace

bool are_sound(const Tensor& triplets, std::int64_t sets, std::int64_t count, std::int64_t rows, int threads) {
  switch (triplets.dtype) {
    case DType::kInt64:
      return are_sound_as<std::int64_t>(triplets, sets, count, rows, threads);
    case DType::kInt32:
      return are_sound_as<std::int32_t>(triplets, sets, count, rows, threads);
    case DType::kInt16:
      return are_sound_as<std::int16_t>(triplets, sets, count, rows, threads);
    case DType::kInt8:
      return are_sound_as<std::int8_t>(triplets, sets, count, rows, threads);
    case DType::kUInt8:
      return are_sound_as<std::uint8_t>(triplets, sets, count, rows, threads);
    default:
      throw std::invalid_argument("triplets: expected an integer dtype");
  }
}

}  // namespace bgs
