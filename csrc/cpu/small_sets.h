// The hybrid loss of a set whose matrix of distances stays in cache: it is made once and becomes, in place, the matrix
// of derivatives, which one product turns into the gradient.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "cpu/hybrid_loss.h"
#include "cpu/memory.h"
#include "cpu/pairs.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/set_loss.h"
#include "cpu/triplets.h"

namespace bgs::cpu::BGS_ISA {

class SmallSet {
 public:
  static constexpr std::int64_t kMostRows = 1024;

  SmallSet(const HybridLoss& given, std::int64_t set, int threads)
      : given_(given),
        set_(set),
        threads_(threads),
        real_(real_rows(given, set)),
        rows_(given.rows, given.columns, given.metric),
        side_(tile_side(given.rows)),
        tiles_((given.rows + side_ - 1) / side_),
        stride_(spread_stride(tiles_ * side_)),
        matrix_(tiles_ * side_ * stride_) {
    std::int64_t size = 1, next = 0;
    while (size < tiles_) size *= 2;
    order_tiles(0, 0, size, &next);
  }

  void run() {
    rows_.prepare(given_.embeddings, set_, real_, threads_);
    packed_ = packed(rows_);
    if (given_.target_embeddings) {
      target_rows_ = Rows(given_.rows, given_.target_columns, given_.target_metric);
      target_rows_.prepare(given_.target_embeddings, set_, real_, threads_);
      packed_targets_ = packed(target_rows_);
    }
    const Moments moments = compute_distances();
    const Triplets triplets(given_, set_);
    Array<std::int32_t> places(3 * kChunk * triplets.chunks());
    Array<float> by_entry(3 * kChunk * triplets.chunks());
    const TripletSums sums = compute_triplets(triplets, places, by_entry);
    const Slopes slopes = finish_terms(given_, set_, sums, moments);
    if (given_.gradient == nullptr) return;
    compute_derivatives(slopes);
    add_triplets(triplets, places, by_entry, static_cast<float>(given_.alpha / (sums.weight == 0 ? 1 : sums.weight)));
    compute_gradient();
  }

 private:
  // The rows of every block of tiles, laid out for the right side of products.
  Array<float> packed(const Rows& rows) const {
    Array<float> blocks(tiles_ * rows.columns() * packed_stride());
    parallel_for_parts(tiles_, threads_, [&](std::int64_t block, int) {
      rows.pack(block * side_, rows_in(rows, block), blocks.get() + block * rows.columns() * packed_stride(),
                packed_stride());
    });
    return blocks;
  }

  std::int64_t packed_stride() const { return side_ + 16; }  // an odd number of cache lines

  // Tiles small enough for every thread to get some.
  static std::int64_t tile_side(std::int64_t rows) { return rows <= 64 ? 32 : rows <= 512 ? 64 : 128; }

  // Call body(row of tiles, column, thread) for the tiles on and above the diagonal; every thread gets the same ones in
  // every loop, and such as lie together.
  template <class Body>
  void for_upper_tiles(const Body& body) const {
    parallel_for_parts(tiles_ * (tiles_ + 1) / 2, threads_, [&](std::int64_t index, int thread) {
      body(order_[index].row, order_[index].column, thread);
    });
  }

  // Bring tiles in an order in which neighbours share rows or columns: a square of tiles by its quarters, in theirs.
  void order_tiles(std::int64_t row, std::int64_t column, std::int64_t size, std::int64_t* next) {
    if (row > column || row >= tiles_ || column >= tiles_) return;
    if (size == 1) {
      order_[(*next)++] = {row, column};
      return;
    }
    const std::int64_t half = size / 2;
    order_tiles(row, column, half, next);
    order_tiles(row, column + half, half, next);
    if (row != column) order_tiles(row + half, column, half, next);
    order_tiles(row + half, column + half, half, next);
  }

  // Rows of block `block` that are not padding.
  std::int64_t real_in(std::int64_t block) const {
    const std::int64_t left = real_ - block * side_;
    return left < 0 ? 0 : left < side_ ? left : side_;
  }

  float* tile(std::int64_t row, std::int64_t column) const {
    return matrix_.get() + row * side_ * stride_ + column * side_;
  }

  // Rows of block `block` in whole panels; those after the last row are zero.
  std::int64_t rows_in(const Rows& rows, std::int64_t block) const {
    const std::int64_t left = rows.padded() - block * side_;
    return left < side_ ? left : side_;
  }

  void products(const Rows& rows, const Array<float>& packed_rows, std::int64_t row, std::int64_t column, float* out,
                std::int64_t out_stride) const {
    product_of_rows(rows.plain() + row * side_ * rows.stride(), rows.stride(), rows_in(rows, row),
                    packed_rows.get() + column * rows.columns() * packed_stride(), packed_stride(),
                    rows_in(rows, column), rows.columns(), row == column, out, out_stride);
  }

  // The distances between target embeddings of a tile.
  void make_targets(std::int64_t row, std::int64_t column, float* out) const {
    if (!given_.target_embeddings) return;
    products(target_rows_, packed_targets_, row, column, out, kTargetStride);
    for (std::int64_t each = 0; each < rows_in(target_rows_, row); ++each) {
      to_distances(given_.target_metric, target_rows_.sizes()[row * side_ + each],
                   target_rows_.sizes() + column * side_, rows_in(target_rows_, column),
                   out + each * kTargetStride);
    }
  }

  // Call use(row within the tile, line) for the rows of a tile that have pairs; see Targets::with_line.
  template <class Use>
  void for_lines(std::int64_t row, std::int64_t column, float* made_targets, const Use& use) const {
    const Targets targets(given_, set_);
    const std::int64_t high = real_in(row), across = real_in(column);
    for (std::int64_t each = 0; each < high; ++each) {
      if (each + kAhead < high) {
        targets.call_for(row * side_ + each + kAhead, column * side_, across);
        for (std::int64_t k = 0; k < across; k += 16) {
          __builtin_prefetch(tile(row, column) + (each + kAhead) * stride_ + k, 1, 2);
        }
      }
      float* made = given_.target_embeddings ? made_targets + each * kTargetStride : nullptr;
      targets.with_line(row * side_ + each, column * side_, across, made,
                        [&](const auto& line) { use(each, line); });
    }
  }

  Moments compute_distances() {
    const std::int64_t count = tiles_ * tiles_;
    Array<Moments> of_tiles(count);
    for (std::int64_t each = 0; each < count; ++each) of_tiles[each] = Moments();
    Array<float> scratch(given_.target_embeddings ? threads_ * kTargetTile : 0);
    for_upper_tiles([&](std::int64_t row, std::int64_t column, int thread) {
      products(rows_, packed_, row, column, tile(row, column), stride_);
      float* target_tile = scratch.get() + thread * kTargetTile;
      make_targets(row, column, target_tile);
      Moments& moments = of_tiles[row * tiles_ + column];
      if (given_.weights) {
        moments = finish_distances<true>(row, column, target_tile);
      } else {
        moments = finish_distances<false>(row, column, target_tile);
      }
    });
    Moments total;
    for (std::int64_t each = 0; each < count; ++each) total.add(of_tiles[each]);
    return total;
  }

  // Turn the products of a tile into distances and sum up what they add to the correlation.
  template <bool kWeighted>
  Moments finish_distances(std::int64_t row, std::int64_t column, float* target_tile) const {
    float* const values = tile(row, column);
    const float *sizes = rows_.sizes() + row * side_, *others = rows_.sizes() + column * side_;
    // padding has distances too: triplets of weight 0 may name it
    const bool all_pairs = given_.has_target() && real_ == given_.rows;
    if (!all_pairs) {
      for (std::int64_t each = 0; each < rows_in(rows_, row); ++each) {
        to_distances(given_.metric, sizes[each], others, rows_in(rows_, column), values + each * stride_);
      }
      if (!given_.has_target()) return Moments();
    }
    return with_distance(given_.metric, [&](auto distance) {
      return all_pairs ? sum_moments<kWeighted, true>(distance, row, column, target_tile)
                       : sum_moments<kWeighted, false>(distance, row, column, target_tile);
    });
  }

  // Sum the moments of a tile up; kMake: its products become distances in the same pass.
  template <bool kWeighted, bool kMake, class Distance>
  Moments sum_moments(Distance distance, std::int64_t row, std::int64_t column, float* target_tile) const {
    const float *sizes = rows_.sizes() + row * side_, *others = rows_.sizes() + column * side_;
    MomentSums<kWeighted> total;
    for_lines(row, column, target_tile, [&](std::int64_t each, const auto& line) {
      float* const values = tile(row, column) + each * stride_;
      const Floats size = all(sizes[each]);
      MomentSums<kWeighted> sums;  // of the row, in registers
      line.for_each([&](std::int64_t place, Targets::Pairs pairs) __attribute__((always_inline)) {
        Floats value = load(values + place);
        if (kMake) {
          value = distance(size + load(others + place), value);
          store(values + place, value);
        }
        sums.add(value, pairs.h, pairs.weights);
      });
      total.add(sums);
    });
    return total.total();
  }

  // Look the distances of the triplets up; `by_entry` becomes their derivatives by these.
  TripletSums compute_triplets(const Triplets& triplets, const Array<std::int32_t>& places,
                               const Array<float>& by_entry) const {
    const std::int64_t chunks = triplets.chunks();
    Array<TripletSums> of_chunks(chunks);
    Array<std::int32_t> wrong(chunks);
    parallel_for_parts(chunks, threads_, [&](std::int64_t chunk, int) {
      auto* place = reinterpret_cast<std::int32_t(*)[kChunk]>(places.get() + 3 * kChunk * chunk);
      auto* values = reinterpret_cast<float(*)[kChunk]>(by_entry.get() + 3 * kChunk * chunk);
      const auto stride = static_cast<std::int32_t>(stride_);
      wrong[chunk] = !triplets.read_pairs(chunk, [&](std::int64_t each, int pair, std::int32_t row, std::int32_t column) {
        place[pair][each] = row * stride + column;
      });
      if (wrong[chunk]) return;
      const std::int64_t count = triplets.chunk_size(chunk);
      const float* const matrix = matrix_.get();
      for (int pair = 0; pair < 3; ++pair) {
        for (std::int64_t each = 0; each < count; ++each) values[pair][each] = matrix[place[pair][each]];
      }
      of_chunks[chunk] = triplets.compute(chunk, values, given_.gradient != nullptr);
    });
    return merge(of_chunks, wrong, chunks);
  }

  // Add the derivatives of the triplets to those of the pairs: every thread those of its own band of rows, in one order
  // whatever the number of bands.
  void add_triplets(const Triplets& triplets, const Array<std::int32_t>& places, const Array<float>& by_entry,
                    float factor) const {
    const std::int64_t bands = 3 * given_.triplet_count < kWorthBands ? 1 : threads_;
    parallel_for_parts(bands, threads_, [&](std::int64_t band, int) {
      const std::int32_t begin = first_place(band, bands), end = first_place(band + 1, bands);
      alignas(64) std::int32_t own_places[kChunk + kWidth];
      alignas(64) float own_values[kChunk + kWidth];
      for (std::int64_t chunk = 0; chunk < triplets.chunks(); ++chunk) {
        for (int pair = 0; pair < 3; ++pair) {
          const std::int64_t first = (3 * chunk + pair) * kChunk;
          const std::int64_t count = select(places.get() + first, by_entry.get() + first, triplets.chunk_size(chunk),
                                            begin, end, own_places, own_values);
          for (std::int64_t each = 0; each < count; ++each) matrix_[own_places[each]] += factor * own_values[each];
        }
      }
    });
  }

  // Where a band of rows begins in the matrix: bands hold about the same number of pairs.
  std::int32_t first_place(std::int64_t band, std::int64_t bands) const {
    const double share = 1 - std::sqrt(1 - static_cast<double>(band) / static_cast<double>(bands));
    return static_cast<std::int32_t>(static_cast<std::int64_t>(share * static_cast<double>(given_.rows)) * stride_);
  }

  void compute_derivatives(const Slopes& slopes) const {
    const Slopes scaled = {static_cast<float>(-given_.beta) * slopes.by_target,
                           static_cast<float>(-given_.beta) * slopes.by_distance, slopes.mean_h, slopes.mean_d};
    Array<float> scratch(given_.target_embeddings ? threads_ * kTargetTile : 0);
    const bool correlated = given_.has_target() && given_.beta != 0;
    for_upper_tiles([&](std::int64_t row, std::int64_t column, int thread) {
      float* const values = tile(row, column);
      if (correlated) {
        float* target_tile = scratch.get() + thread * kTargetTile;
        make_targets(row, column, target_tile);
        with_distance(given_.metric, [&](auto distance) {
          for_lines(row, column, target_tile, [&](std::int64_t each, const auto& line) {
            to_derivatives(distance, scaled, line, values + each * stride_);
          });
        });
      }
      // what belongs to no pair: all without a correlation, else padding
      for (std::int64_t i = 0; i < side_; ++i) {
        const bool real = correlated && row * side_ + i < real_;
        const std::int64_t rest = real ? real_ - column * side_ : 0;
        for (std::int64_t j = rest < 0 ? 0 : rest; j < side_; ++j) values[i * stride_ + j] = 0;
      }
    });
  }

  // The matrix holds the derivatives by pairs i < j: row i of the symmetric one is column i down to the diagonal and row
  // i from there on. Rows are taken in groups, as many as there are for threads to share.
  void compute_gradient() const {
    if (given_.rows <= kNarrowRows) {
      compute_gradient_of_groups<kPanel>();
    } else {
      compute_gradient_of_groups<2 * kPanel>();
    }
  }

  template <std::int64_t kGroup>
  void compute_gradient_of_groups() const {
    const std::int64_t padded = rows_.padded(), stride = rows_.stride(), wide_columns = up_to(given_.columns, kPanel);
    Array<float> products(padded * stride);
    parallel_for_parts((padded + kGroup - 1) / kGroup, threads_, [&](std::int64_t index, int) {
      const std::int64_t first = index * kGroup, size = first + kGroup < padded ? kGroup : padded - first;
      const std::int64_t last = first + size;
      const auto at = [&](std::int64_t row, std::int64_t column) { return matrix_.get() + row * stride_ + column; };
      float* out = products.get() + first * stride;
      alignas(64) float diagonal[kGroup * kGroup];
      for (std::int64_t i = 0; i < size; ++i) {
        for (std::int64_t j = 0; j < size; ++j) diagonal[i * kGroup + j] = *at(first + (i < j ? i : j), first + (i < j ? j : i));
      }
      product(transposed(diagonal, kGroup), rows_.plain() + first * stride, stride, size, size, wide_columns, out, stride,
              false);
      for (std::int64_t from = 0; from < first; from += kShallow) {
        for (std::int64_t k = from + kShallow; k < from + 2 * kShallow && k < first; ++k) {  // of the next product
          for (std::int64_t j = 0; j < size; j += 16) __builtin_prefetch(at(k, first + j), 0, 2);
        }
        product(transposed(at(from, first), stride_), rows_.plain() + from * stride, stride,
                first - from < kShallow ? first - from : kShallow, size, wide_columns, out, stride, true);
      }
      for (std::int64_t from = last; from < padded; from += kShallow) {
        product(as_it_is(at(first, from), stride_), rows_.plain() + from * stride, stride,
                padded - from < kShallow ? padded - from : kShallow, size, wide_columns, out, stride, true);
      }
      Doubles totals[kGroup / kHalf] = {};
      for (std::int64_t k = 0; k < first; ++k) add_columns<kGroup>(at(k, first), totals);
      for (std::int64_t k = 0; k < size; ++k) add_columns<kGroup>(diagonal + k * kGroup, totals);
      for (std::int64_t i = 0; i < size && first + i < given_.rows; ++i) {
        const float total = static_cast<float>(totals[i / kHalf][i % kHalf] + row_sum(at(first + i, last), padded - last));
        finish_row(given_, rows_, set_, first + i, real_, total, out + i * stride);
      }
    });
  }

  static constexpr std::int64_t kWorthBands = 4096;  // entries below which one thread adds them faster
  static constexpr std::int64_t kNarrowRows = 512;
  static constexpr std::int64_t kMostTiles = 8;  // a side, for kMostRows
  static constexpr std::int64_t kAhead = 8;  // rows
  static constexpr std::int64_t kTargetStride = 128;
  static constexpr std::int64_t kTargetTile = 128 * kTargetStride;

  const HybridLoss& given_;
  std::int64_t set_;
  int threads_;
  std::int64_t real_;
  Rows rows_, target_rows_;
  Array<float> packed_, packed_targets_;
  std::int64_t side_, tiles_, stride_;
  Array<float> matrix_;
  struct Tile {
    std::int64_t row, column;
  };
  Tile order_[kMostTiles * (kMostTiles + 1) / 2];
};

}  // namespace bgs::cpu::BGS_ISA
