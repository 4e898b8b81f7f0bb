// How values are ranked. The floor is what has to move at least: a double is read and its rank written, 16 bytes a value,
// 8 ms for 8 million values at 16 GB/s. A comparison sort of positions misses the cache at nearly every comparison; here
// the values themselves are moved, in one word with their positions:
//   * an order-preserving integer key of each value, less the smallest, is cut to its leading bits (kWindowBits) and packed
//     above the position: 16 bytes a value to make;
//   * three passes of a radix sort on those bits: 24 bytes a value each (counted, read, written);
//   * values whose leading bits are equal are compared in full, those of short runs at once, those of long runs by ranking
//     the run anew: less the smallest of the run, what is left of its keys fits the window;
//   * a rank is written at each position: a cache line a value, the largest part where values outgrow the cache.
#include "cpu/ranks.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/parts.h"
#include "cpu/radix_sort.h"
#include "cpu/scratch.h"

namespace bgs {

namespace {

// What three passes sort.
constexpr int kWindowBits = 33;

// A run of equal leading bits that is longer is ranked anew rather than sorted by comparisons.
constexpr std::int64_t kLongRun = 2048;

template <typename T>
using Key = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

// An integer in the order of the values: positive numbers get the sign bit set, negative ones all bits flipped.
template <typename T>
Key<T> key_of(T value) {
  constexpr Key<T> sign = Key<T>{1} << (8 * sizeof(T) - 1);
  value += T{0};  // -0 becomes 0
  Key<T> bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits & sign ? ~bits : bits | sign;
}

template <typename T>
struct Extent {
  std::int64_t count = 0;  // of values that are not NaN
  Key<T> smallest = std::numeric_limits<Key<T>>::max();
  Key<T> largest = 0;

  void add(T value) {
    if (value != value) return;
    const Key<T> key = key_of(value);
    ++count;
    smallest = std::min(smallest, key);
    largest = std::max(largest, key);
  }
};

// Consecutive sorted words with equal leading bits.
struct Run {
  std::int64_t begin, end;
};

// The bits of a word: position below `position_bits`, above it `window` leading bits of (key - smallest), which has
// `dropped` more.
struct Layout {
  Layout(std::uint64_t range, std::int64_t places)
      : position_bits(bit_length(static_cast<std::uint64_t>(std::max<std::int64_t>(places - 1, 0)))) {
    const int bits = bit_length(range);
    window = std::min({bits, kWindowBits, 64 - position_bits});
    dropped = bits - window;
  }

  std::int64_t position(std::uint64_t word) const {
    return static_cast<std::int64_t>(word & ((std::uint64_t{1} << position_bits) - 1));
  }
  std::uint64_t leading(std::uint64_t word) const { return word >> position_bits; }
  std::uint64_t pack(std::uint64_t above_smallest, std::int64_t position) const {
    return (above_smallest >> dropped) << position_bits | static_cast<std::uint64_t>(position);
  }

  int position_bits, window, dropped;
};

// Sorts values and says of each group of ties which places it takes: `emit(position, place, first, last)` for every
// value, first..last being the places of its ties, from 0.
template <typename T, typename Emit>
class Ranking {
 public:
  Ranking(const T* values, std::int64_t places, int threads, const Emit& emit)
      : values_(values), places_(places), threads_(threads), emit_(emit) {}

  // Ranks all values that are not NaN; returns the number of tied pairs.
  std::int64_t rank_all() {
    const Parts parts(places_, threads_);
    std::vector<Extent<T>> extents(static_cast<std::size_t>(parts.number));
#pragma omp parallel for num_threads(parts.number) schedule(static, 1)
    for (int part = 0; part < parts.number; ++part) {
      Extent<T> mine;
      for (std::int64_t k = parts.begin(part); k < parts.end(part); ++k) mine.add(values_[k]);
      extents[static_cast<std::size_t>(part)] = mine;
    }
    Extent<T> all;
    std::vector<std::int64_t> starts;
    for (const Extent<T>& each : extents) {
      starts.push_back(all.count);
      all.count += each.count;
      all.smallest = std::min(all.smallest, each.smallest);
      all.largest = std::max(all.largest, each.largest);
    }
    if (all.count == 0) return 0;
    const Layout layout(all.largest - all.smallest, places_);
    const Scratch<std::uint64_t> words(all.count), spare(all.count);
#pragma omp parallel for num_threads(parts.number) schedule(static, 1)
    for (int part = 0; part < parts.number; ++part) {
      std::uint64_t* next = words.data() + starts[static_cast<std::size_t>(part)];
      for (std::int64_t k = parts.begin(part); k < parts.end(part); ++k) {
        if (values_[k] == values_[k]) *next++ = layout.pack(key_of(values_[k]) - all.smallest, k);
      }
    }
    return rank_words(words.data(), spare.data(), 0, all.count, layout, threads_);
  }

 private:
  // Sorts and ranks words that take the places from `place` on.
  std::int64_t rank_words(std::uint64_t* words, std::uint64_t* spare, std::int64_t place, std::int64_t count,
                          const Layout& layout, int threads) {
    radix_sort(words, spare, count, layout.position_bits, layout.window, threads);
    const Parts parts(count, threads);
    std::vector<std::vector<Run>> long_runs(static_cast<std::size_t>(parts.number));
    std::int64_t tied = 0;
#pragma omp parallel for num_threads(parts.number) schedule(static, 1) reduction(+ : tied)
    for (int part = 0; part < parts.number; ++part) {
      std::vector<std::pair<Key<T>, std::int64_t>> keyed;
      // a run belongs to the part in which it begins
      std::int64_t begin = run_start(words, parts.begin(part), count, layout);
      const std::int64_t end = run_start(words, parts.end(part), count, layout);
      while (begin < end) {
        const std::uint64_t leading = layout.leading(words[begin]);
        std::int64_t stop = begin + 1;
        while (stop < count && layout.leading(words[stop]) == leading) ++stop;
        if (stop - begin == 1) {
          emit_(layout.position(words[begin]), place + begin, place + begin, place + begin);
        } else if (layout.dropped == 0 || all_equal(words, begin, stop, layout)) {
          tied += emit_ties(words, begin, stop, place, layout);
        } else if (stop - begin <= kLongRun) {
          tied += rank_by_comparing(words, begin, stop, place, layout, keyed);
        } else {
          long_runs[static_cast<std::size_t>(part)].push_back({begin, stop});
        }
        begin = stop;
      }
    }
    for (const auto& of_part : long_runs) {
      for (const Run& run : of_part) tied += rank_run(words, spare, run, place, layout, threads);
    }
    return tied;
  }

  // The first place from k on at which a run begins.
  static std::int64_t run_start(const std::uint64_t* words, std::int64_t k, std::int64_t count, const Layout& layout) {
    if (k == 0) return 0;
    while (k < count && layout.leading(words[k]) == layout.leading(words[k - 1])) ++k;
    return k;
  }

  bool all_equal(const std::uint64_t* words, std::int64_t begin, std::int64_t end, const Layout& layout) const {
    const T first = values_[layout.position(words[begin])];
    for (std::int64_t k = begin + 1; k < end; ++k) {
      if (values_[layout.position(words[k])] != first) return false;
    }
    return true;
  }

  std::int64_t emit_ties(const std::uint64_t* words, std::int64_t begin, std::int64_t end, std::int64_t place,
                         const Layout& layout) const {
    for (std::int64_t k = begin; k < end; ++k) {
      emit_(layout.position(words[k]), place + k, place + begin, place + end - 1);
    }
    const std::int64_t size = end - begin;
    return size * (size - 1) / 2;
  }

  std::int64_t rank_by_comparing(const std::uint64_t* words, std::int64_t begin, std::int64_t end, std::int64_t place,
                                 const Layout& layout, std::vector<std::pair<Key<T>, std::int64_t>>& keyed) const {
    keyed.clear();
    for (std::int64_t k = begin; k < end; ++k) {
      const std::int64_t position = layout.position(words[k]);
      keyed.emplace_back(key_of(values_[position]), position);
    }
    std::sort(keyed.begin(), keyed.end());
    std::int64_t tied = 0;
    const std::int64_t count = end - begin;
    for (std::int64_t first = 0, last; first < count; first = last + 1) {
      last = first;
      while (last + 1 < count && keyed[last + 1].first == keyed[first].first) ++last;
      for (std::int64_t k = first; k <= last; ++k) {
        emit_(keyed[k].second, place + begin + k, place + begin + first, place + begin + last);
      }
      tied += (last - first + 1) * (last - first) / 2;
    }
    return tied;
  }

  // Ranks a run anew by the bits in which its keys differ.
  std::int64_t rank_run(std::uint64_t* words, std::uint64_t* spare, const Run& run, std::int64_t place,
                        const Layout& above, int threads) {
    Extent<T> extent;
    for (std::int64_t k = run.begin; k < run.end; ++k) extent.add(values_[above.position(words[k])]);
    const Layout layout(extent.largest - extent.smallest, places_);
    for (std::int64_t k = run.begin; k < run.end; ++k) {
      const std::int64_t position = above.position(words[k]);
      words[k] = layout.pack(key_of(values_[position]) - extent.smallest, position);
    }
    return rank_words(words + run.begin, spare + run.begin, place + run.begin, run.end - run.begin, layout, threads);
  }

  const T* values_;
  std::int64_t places_;
  int threads_;
  const Emit& emit_;
};

template <typename T, typename Emit>
std::int64_t rank_all(const T* values, std::int64_t count, int threads, const Emit& emit) {
  return Ranking<T, Emit>(values, count, threads, emit).rank_all();
}

template <typename T>
void rank_row(const T* values, std::int64_t columns, double* ranks, int threads) {
  const Parts parts(columns, threads);
  // before the ranking, which writes at every other place
#pragma omp parallel for num_threads(parts.number) schedule(static, 1)
  for (int part = 0; part < parts.number; ++part) {
    for (std::int64_t k = parts.begin(part); k < parts.end(part); ++k) {
      if (values[k] != values[k]) ranks[k] = std::numeric_limits<double>::quiet_NaN();
    }
  }
  rank_all(values, columns, threads,
           [ranks](std::int64_t position, std::int64_t, std::int64_t first, std::int64_t last) {
             ranks[position] = 0.5 * static_cast<double>(first + last) + 1.0;
           });
}

}  // namespace

int bit_length(std::uint64_t number) {
  int bits = 0;
  for (; number != 0; number >>= 1) ++bits;
  return bits;
}

template <typename T>
void fractional_ranks(const T* values, std::int64_t rows, std::int64_t columns, double* ranks, int threads) {
  wish_huge_pages(ranks, sizeof(*ranks) * static_cast<std::size_t>(rows * columns));
  if (columns >= kSmallestPart || rows < threads) {
    for (std::int64_t row = 0; row < rows; ++row) rank_row(values + row * columns, columns, ranks + row * columns, threads);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (std::int64_t row = 0; row < rows; ++row) rank_row(values + row * columns, columns, ranks + row * columns, 1);
}

template <typename T>
std::int64_t count_smaller(const T* values, std::int64_t count, std::uint32_t* smaller, int threads) {
  return rank_all(values, count, threads,
                  [smaller](std::int64_t position, std::int64_t, std::int64_t first, std::int64_t) {
                    smaller[position] = static_cast<std::uint32_t>(first);
                  });
}

template <typename T>
std::int64_t order_beside(const T* values, const std::uint32_t* first, std::int64_t count, int bits,
                          std::uint64_t* words, int threads) {
  return rank_all(values, count, threads,
                  [=](std::int64_t position, std::int64_t place, std::int64_t smaller, std::int64_t) {
                    words[place] = std::uint64_t{first[position]} << bits | static_cast<std::uint64_t>(smaller);
                  });
}

#define BGS_INSTANTIATE(T)                                                                            \
  template void fractional_ranks(const T*, std::int64_t, std::int64_t, double*, int);                 \
  template std::int64_t count_smaller(const T*, std::int64_t, std::uint32_t*, int);                   \
  template std::int64_t order_beside(const T*, const std::uint32_t*, std::int64_t, int, std::uint64_t*, int);
BGS_INSTANTIATE(float)
BGS_INSTANTIATE(double)
#undef BGS_INSTANTIATE

}  // namespace bgs
