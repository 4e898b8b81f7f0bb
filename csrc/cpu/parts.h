// How a loop over many elements is divided among threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace bgs {

// A part smaller than this is done before a thread has woken up for it.
constexpr std::int64_t kSmallestPart = 1 << 14;

// `number` consecutive parts of about the same size, no more than threads and at least one.
struct Parts {
  Parts(std::int64_t count, int threads)
      : count(count), number(static_cast<int>(std::clamp<std::int64_t>(count / kSmallestPart, 1, std::max(threads, 1)))) {}

  std::int64_t begin(int part) const { return count / number * part + count % number * part / number; }
  std::int64_t end(int part) const { return begin(part + 1); }

  std::int64_t count;
  int number;
};

}  // namespace bgs
