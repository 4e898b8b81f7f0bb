// Counting reads the triplets once and increments three counters for each. The floor is the reading, 24 bytes a triplet
// of int64 (8 ms for 5 million at 16 GB/s), and the writing of the result, 16 bytes a pair of rows (3 ms for N = 1,854).
// What costs more than either is a counter that is not in the cache, and a branch on which of two random rows is the
// higher: counters are kept for the lower triangle alone, both counts of a pair in one word, and no branch depends on the
// order. While such a triangle fits the cache (N = 250: 249 KB) each thread counts into one of its own. Beyond, pairs are
// first sorted into buckets of neighbouring counters, 2 bytes a pair, and a bucket is counted at once: into a triangle, or, up
// to 4,096 rows, in the cache and written to the matrices from there, which saves the triangle's memory being made and moved.
#include "cpu/counts.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/parts.h"
#include "cpu/scratch.h"

namespace bgs {

namespace {

// The counters of a triangle up to this size, half of a second-level cache, are incremented where they are: N = 362.
constexpr std::int64_t kCachedCounters = 1 << 16;

// Up to this many pairs of rows twice the place of one fits 32 bits: N = 65,536.
constexpr std::int64_t kShortestPairs = std::int64_t{1} << 31;

// Counters of a bucket: 256 KB of words, and places in it fit a 16-bit entry beside one bit.
constexpr int kBucketBits = 15;

// Triplets that are sorted into buckets at a time, so that their pairs stay in the cache, and that are kept sorted until
// the buckets are counted: 25 MB of pairs.
constexpr std::int64_t kChunk = 1 << 14;
constexpr std::int64_t kChunks = 256;

// Chunks that are all kept sorted where that spares the triangle (50 MB of pairs, 8.4 million triplets), and the rows up to
// which a bucket spans at least eight, whose columns are then written a cache line at a time.
constexpr std::int64_t kMostChunks = 512;
constexpr std::int64_t kMostRowsInPlace = (std::int64_t{1} << kBucketBits) / 8;

// Rows mirrored at a time, so that what is written by columns is still in the cache for the next column.
constexpr std::int64_t kTile = 32;

// A word holds both counts of a pair: shown apart in the low half, left together in the high half.
constexpr std::uint64_t one_of(std::uint64_t left_together) { return std::uint64_t{1} << 32 * left_together; }
constexpr std::int64_t apart_in(std::uint64_t word) { return static_cast<std::int64_t>(word & 0xffffffff); }
constexpr std::int64_t together_in(std::uint64_t word) { return static_cast<std::int64_t>(word >> 32); }

// Where the pairs of `row` with lower rows begin in a triangle; also how many pairs the rows below it make.
constexpr std::int64_t triangle(std::int64_t row) { return row * (row - 1) / 2; }

inline std::int64_t place_of_pair(std::int64_t one, std::int64_t other) {
  const std::int64_t exchange = (one ^ other) & -static_cast<std::int64_t>(one < other);
  return triangle(one ^ exchange) + (other ^ exchange);
}

// Calls use(place, left_together) for the three pairs of the triplets [begin, end), until one names a row that does not
// exist or a row twice; says whether none did.
template <typename Index, typename Use>
bool for_pairs(const Tensor& triplets, std::int64_t begin, std::int64_t end, std::int64_t rows, const Use& use) {
  const std::int64_t along = triplets.stride[1];
  const std::uint64_t limit = static_cast<std::uint64_t>(rows);
  for (std::int64_t t = begin; t < end; ++t) {
    const Index* const triplet = static_cast<const Index*>(triplets.data) + t * triplets.stride[0];
    const std::int64_t i = triplet[0], j = triplet[along], k = triplet[2 * along];
    // a negative number is a large one without a sign
    const bool outside = (static_cast<std::uint64_t>(i) >= limit) | (static_cast<std::uint64_t>(j) >= limit) |
                         (static_cast<std::uint64_t>(k) >= limit);
    if (outside | (i == j) | (i == k) | (j == k)) return false;
    use(place_of_pair(i, j), true);
    use(place_of_pair(i, k), false);
    use(place_of_pair(j, k), false);
  }
  return true;
}

// Writes the two symmetric matrices from triangles of words, of which a pair's sum counts.
void write_matrices(const std::vector<Scratch<std::uint64_t>>& triangles, std::int64_t rows, std::int64_t* shown,
                    std::int64_t* together, int threads) {
  const std::size_t bytes = sizeof(*shown) * static_cast<std::size_t>(rows * rows);
  wish_huge_pages(shown, bytes);
  wish_huge_pages(together, bytes);
  const std::int64_t tiles = (rows + kTile - 1) / kTile;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int64_t last_row = std::min(rows, (tile + 1) * kTile);
    for (std::int64_t first = 0; first < last_row; first += kTile) {
      for (std::int64_t row = tile * kTile; row < last_row; ++row) {
        for (std::int64_t column = first; column < std::min(row, first + kTile); ++column) {
          std::uint64_t both = 0;
          for (const auto& each : triangles) both += each[triangle(row) + column];
          const std::int64_t here = row * rows + column, there = column * rows + row;
          together[here] = together[there] = together_in(both);
          shown[here] = shown[there] = apart_in(both) + together_in(both);
        }
      }
    }
    for (std::int64_t row = tile * kTile; row < last_row; ++row) {
      shown[row * rows + row] = together[row * rows + row] = 0;
    }
  }
}

template <typename Index>
bool count_in_cache(const Tensor& triplets, std::int64_t count, std::int64_t rows,
                    std::vector<Scratch<std::uint64_t>>& triangles, int threads) {
  const Parts parts(count, threads);
  for (int part = 0; part < parts.number; ++part) triangles.emplace_back(triangle(rows));
  bool sound = true;
#pragma omp parallel for num_threads(parts.number) schedule(static, 1) reduction(&& : sound)
  for (int part = 0; part < parts.number; ++part) {
    std::uint64_t* const mine = triangles[static_cast<std::size_t>(part)].data();
    std::fill_n(mine, triangle(rows), std::uint64_t{0});
    const bool good = for_pairs<Index>(
        triplets, parts.begin(part), parts.end(part), rows,
        [mine](std::int64_t place, bool left_together) { mine[place] += one_of(left_together); });
    sound = sound && good;
  }
  return sound;
}

// Pairs of some chunks of triplets, those of each chunk sorted by bucket.
class Buckets {
 public:
  Buckets(std::int64_t rows, std::int64_t chunks)
      : rows_(rows),
        number_(((triangle(rows) - 1) >> kBucketBits) + 1),
        entries_(3 * kChunk * chunks),
        starts_(chunks * (number_ + 1)) {}

  // Sorts the pairs of the triplets [done, count), up to `chunks` chunks of them, as chunks from 0 on.
  template <typename Index, typename Pair>
  bool sort_chunks(const Tensor& triplets, std::int64_t done, std::int64_t count, std::int64_t chunks,
                   int threads) const {
    bool sound = true;
#pragma omp parallel num_threads(threads) reduction(&& : sound)
    {
      const Scratch<std::uint32_t> next(number_ + 1);
      const Scratch<Pair> pairs(3 * kChunk);
#pragma omp for schedule(dynamic)
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        const std::int64_t begin = done + chunk * kChunk, end = std::min(count, begin + kChunk);
        const bool good = sort<Index, Pair>(chunk, triplets, begin, end, next.data(), pairs.data());
        sound = sound && good;
      }
    }
    return sound;
  }

  // Sorts the pairs of the triplets [begin, end) as a chunk; says whether all of them name three different rows.
  template <typename Index, typename Pair>
  bool sort(std::int64_t chunk, const Tensor& triplets, std::int64_t begin, std::int64_t end,
            std::uint32_t* const next, Pair* const pairs) const {
    std::fill_n(next, number_ + 1, 0);
    std::int64_t found = 0;
    const bool sound =
        for_pairs<Index>(triplets, begin, end, rows_, [&](std::int64_t place, bool left_together) {
          pairs[found++] = static_cast<Pair>(place) << 1 | (left_together ? 1 : 0);
          ++next[place >> kBucketBits];
        });
    std::uint32_t* const starts = starts_.data() + chunk * (number_ + 1);
    std::uint32_t before = 0;
    for (std::int64_t bucket = 0; bucket <= number_; ++bucket) {
      starts[bucket] = before;
      before += next[bucket];
      next[bucket] = starts[bucket];
    }
    std::uint16_t* const entries = entries_.data() + chunk * 3 * kChunk;
    for (std::int64_t each = 0; each < found; ++each) {
      entries[next[pairs[each] >> (kBucketBits + 1)]++] = static_cast<std::uint16_t>(pairs[each]);
    }
    return sound;
  }

  // Adds the pairs of a bucket in the first `chunks` chunks to its counters.
  void count(std::int64_t bucket, std::int64_t chunks, std::uint64_t* counters) const {
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const std::uint32_t* const starts = starts_.data() + chunk * (number_ + 1);
      const std::uint16_t* const entries = entries_.data() + chunk * 3 * kChunk;
      for (std::uint32_t each = starts[bucket]; each < starts[bucket + 1]; ++each) {
        counters[entries[each] >> 1] += one_of(entries[each] & 1);
      }
    }
  }

  std::int64_t number() const { return number_; }

 private:
  std::int64_t rows_, number_;
  Scratch<std::uint16_t> entries_;
  Scratch<std::uint32_t> starts_;  // (chunks, number + 1)
};

// A Pair is an integer that holds twice the place of a pair.
template <typename Index, typename Pair>
bool count_by_buckets(const Tensor& triplets, std::int64_t count, std::int64_t rows,
                      std::vector<Scratch<std::uint64_t>>& triangles, int threads) {
  triangles.emplace_back(triangle(rows));
  std::uint64_t* const counters = triangles.front().data();
  const Parts zeroed(triangle(rows), threads);
#pragma omp parallel for num_threads(zeroed.number) schedule(static, 1)
  for (int part = 0; part < zeroed.number; ++part) {
    std::fill(counters + zeroed.begin(part), counters + zeroed.end(part), std::uint64_t{0});
  }
  const Buckets buckets(rows, kChunks);
  for (std::int64_t done = 0; done < count; done += kChunk * kChunks) {
    const std::int64_t chunks = std::min((count - done + kChunk - 1) / kChunk, kChunks);
    const Parts parts(chunks * kChunk, threads);
    if (!buckets.sort_chunks<Index, Pair>(triplets, done, count, chunks, parts.number)) return false;
    const std::int64_t number = buckets.number();
#pragma omp parallel for num_threads(parts.number) schedule(dynamic)
    for (std::int64_t bucket = 0; bucket < number; ++bucket) {
      buckets.count(bucket, chunks, counters + (bucket << kBucketBits));
    }
  }
  return true;
}

// Writes the counters of the pairs [begin, end) of the triangle to both halves of the matrices.
void write_pairs(const std::uint64_t* counters, std::int64_t begin, std::int64_t end, std::int64_t rows,
                 std::int64_t* shown, std::int64_t* together) {
  std::int64_t first = static_cast<std::int64_t>((1 + std::sqrt(1 + 8 * static_cast<double>(begin))) / 2);
  while (triangle(first) > begin) --first;
  while (triangle(first + 1) <= begin) ++first;
  std::int64_t last = first;  // the row after the last
  while (last < rows && triangle(last) < end) ++last;
  for (std::int64_t row = first; row < last; ++row) {
    const std::int64_t from = std::max(begin, triangle(row)), to = std::min(end, triangle(row + 1));
    std::int64_t here = row * rows + from - triangle(row);
    for (std::int64_t place = from; place < to; ++place, ++here) {
      together[here] = together_in(counters[place - begin]);
      shown[here] = apart_in(counters[place - begin]) + together_in(counters[place - begin]);
    }
  }
  for (std::int64_t column = 0; column + 1 < last; ++column) {
    for (std::int64_t row = std::max(first, column + 1); row < last; ++row) {
      const std::int64_t place = triangle(row) + column;
      if (place < begin || place >= end) continue;
      together[column * rows + row] = together_in(counters[place - begin]);
      shown[column * rows + row] = apart_in(counters[place - begin]) + together_in(counters[place - begin]);
    }
  }
}

// As `count_by_buckets`, but each bucket is counted in the cache and written to the matrices from there.
template <typename Index>
bool count_in_place(const Tensor& triplets, std::int64_t count, std::int64_t rows, std::int64_t* shown,
                    std::int64_t* together, int threads) {
  const std::int64_t chunks = (count + kChunk - 1) / kChunk;
  const Buckets buckets(rows, chunks);
  if (!buckets.sort_chunks<Index, std::uint32_t>(triplets, 0, count, chunks, threads)) return false;
  const std::size_t bytes = sizeof(*shown) * static_cast<std::size_t>(rows * rows);
  wish_huge_pages(shown, bytes);
  wish_huge_pages(together, bytes);
  const std::int64_t number = buckets.number();
#pragma omp parallel num_threads(threads)
  {
    const Scratch<std::uint64_t> counters(std::int64_t{1} << kBucketBits);
#pragma omp for schedule(dynamic)
    for (std::int64_t bucket = 0; bucket < number; ++bucket) {
      const std::int64_t begin = bucket << kBucketBits;
      const std::int64_t end = std::min(triangle(rows), begin + (std::int64_t{1} << kBucketBits));
      std::fill_n(counters.data(), end - begin, std::uint64_t{0});
      buckets.count(bucket, chunks, counters.data());
      write_pairs(counters.data(), begin, end, rows, shown, together);
    }
  }
  for (std::int64_t row = 0; row < rows; ++row) shown[row * rows + row] = together[row * rows + row] = 0;
  return true;
}

template <typename Index>
bool count_all(const Tensor& triplets, std::int64_t count, std::int64_t rows, std::int64_t* shown,
               std::int64_t* together, int threads) {
  const bool is_cached = triangle(rows) <= kCachedCounters;
  if (!is_cached && rows <= kMostRowsInPlace && count <= kChunk * kMostChunks) {
    return count_in_place<Index>(triplets, count, rows, shown, together, threads);
  }
  std::vector<Scratch<std::uint64_t>> triangles;
  const auto run = is_cached                          ? count_in_cache<Index>
                   : triangle(rows) <= kShortestPairs ? count_by_buckets<Index, std::uint32_t>
                                                      : count_by_buckets<Index, std::uint64_t>;
  if (!run(triplets, count, rows, triangles, threads)) return false;
  write_matrices(triangles, rows, shown, together, threads);
  return true;
}

}  // namespace

bool count_triplets(const Tensor& triplets, std::int64_t count, std::int64_t rows, std::int64_t* shown,
                    std::int64_t* together, int threads) {
  switch (triplets.dtype) {
    case DType::kInt64: return count_all<std::int64_t>(triplets, count, rows, shown, together, threads);
    case DType::kInt32: return count_all<std::int32_t>(triplets, count, rows, shown, together, threads);
    case DType::kInt16: return count_all<std::int16_t>(triplets, count, rows, shown, together, threads);
    case DType::kInt8: return count_all<std::int8_t>(triplets, count, rows, shown, together, threads);
    default: return count_all<std::uint8_t>(triplets, count, rows, shown, together, threads);
  }
}

}  // namespace bgs
