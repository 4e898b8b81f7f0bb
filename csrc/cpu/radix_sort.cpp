#include "cpu/radix_sort.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/parts.h"

namespace bgs {

namespace {

// Digits of 11 bits sort 33 bits in three passes; their 2,048 counters and write positions stay in the first-level
// cache. On 8 million words 8 bits (a pass more) and 12 bits (counters that leave that cache) were both slower.
constexpr int kDigitBits = 11;

// Below this many words counting digits costs more than comparing words.
constexpr std::int64_t kFewWords = 1024;

}  // namespace

void radix_sort(std::uint64_t* words, std::uint64_t* spare, std::int64_t count, int low, int width, int threads) {
  if (count < 2 || width == 0) return;
  if (count < kFewWords) {
    const std::uint64_t mask = width == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << width) - 1;
    std::stable_sort(words, words + count, [low, mask](std::uint64_t one, std::uint64_t other) {
      return ((one >> low) & mask) < ((other >> low) & mask);
    });
    return;
  }
  const int passes = (width + kDigitBits - 1) / kDigitBits;
  const Parts parts(count, threads);
  std::uint64_t* const home = words;
  // where the next word of each digit goes, one row a part
  std::vector<std::int64_t> places;
  for (int pass = 0; pass < passes; ++pass) {
    // the passes share the bits evenly
    const int first_bit = low + width * pass / passes;
    const int bits = low + width * (pass + 1) / passes - first_bit;
    const std::int64_t digits = std::int64_t{1} << bits;
    const std::uint64_t mask = static_cast<std::uint64_t>(digits) - 1;
    places.assign(static_cast<std::size_t>(parts.number * digits), 0);
#pragma omp parallel for num_threads(parts.number) schedule(static, 1)
    for (int part = 0; part < parts.number; ++part) {
      std::int64_t* const mine = places.data() + part * digits;
      for (std::int64_t k = parts.begin(part); k < parts.end(part); ++k) ++mine[(words[k] >> first_bit) & mask];
    }
    std::int64_t before = 0;
    bool constant = false;
    for (std::int64_t digit = 0; digit < digits; ++digit) {
      const std::int64_t of_smaller_digits = before;
      for (int part = 0; part < parts.number; ++part) {
        const std::int64_t here = places[static_cast<std::size_t>(part * digits + digit)];
        places[static_cast<std::size_t>(part * digits + digit)] = before;
        before += here;
      }
      constant = constant || before - of_smaller_digits == count;
    }
    if (constant) continue;
#pragma omp parallel for num_threads(parts.number) schedule(static, 1)
    for (int part = 0; part < parts.number; ++part) {
      std::int64_t* const mine = places.data() + part * digits;
      for (std::int64_t k = parts.begin(part); k < parts.end(part); ++k) {
        const std::uint64_t word = words[k];
        spare[mine[(word >> first_bit) & mask]++] = word;
      }
    }
    std::swap(words, spare);
  }
  if (words != home) {
    const Parts copied(count, threads);
#pragma omp parallel for num_threads(copied.number) schedule(static, 1)
    for (int part = 0; part < copied.number; ++part) {
      const std::int64_t begin = copied.begin(part);
      std::memcpy(home + begin, words + begin, sizeof(*home) * static_cast<std::size_t>(copied.end(part) - begin));
    }
  }
}

}  // namespace bgs
