// The hybrid loss of a set whose matrix of distances would not stay in cache. Distances are made tile by tile, forward
// and again backward; tiles are kept in between as far as a fixed amount of memory goes, so that no set needs more than
// that beside its rows.
//
// Backward, a tile of derivatives adds to two blocks of rows. The tiles are taken in rounds, as in a tournament where
// every block meets every other once: no two tiles of a round share a block, and every block's sum is added up in the
// order of the rounds, whatever the number of threads.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "cpu/entries.h"
#include "cpu/hybrid_loss.h"
#include "cpu/memory.h"
#include "cpu/pairs.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/set_loss.h"
#include "cpu/triplets.h"

namespace bgs::cpu::BGS_ISA {

class LargeSet {
 public:
  LargeSet(const HybridLoss& given, std::int64_t set, int threads)
      : given_(given),
        set_(set),
        threads_(threads),
        real_(real_rows(given, set)),
        tiles_((given.rows + kSide - 1) / kSide),
        triplets_(given, set),
        rows_(given.rows, given.columns, given.metric) {
    for (Array<float>& each : scratch_) each = Array<float>(threads_ * kTile);
    packed_[0] = Packed(threads_, given.columns);
    packed_[1] = Packed(threads_, given.target_columns);
  }

  void run() {
    rows_.prepare(given_.embeddings, set_, real_, threads_);
    if (given_.target_embeddings) {
      target_rows_ = Rows(given_.rows, given_.target_columns, given_.target_metric);
      target_rows_.prepare(given_.target_embeddings, set_, real_, threads_);
    }
    const Entries entries(triplets_, tiles_, threads_);
    Array<float> by_entry(3 * kChunk * triplets_.chunks());
    if (given_.gradient != nullptr) reserve_tiles();
    const Moments moments = compute_distances(entries, by_entry.get());
    const TripletSums sums = compute_triplets(by_entry.get());
    const Slopes slopes = finish_terms(given_, set_, sums, moments);
    if (given_.gradient == nullptr) return;
    compute_gradient(entries, by_entry.get(), slopes,
                     static_cast<float>(given_.alpha / (sums.weight == 0 ? 1 : sums.weight)));
  }

 private:
  static constexpr std::int64_t kSide = kTileSide;
  static constexpr std::int64_t kStride = kTileStride;
  static constexpr std::int64_t kTile = kSide * kStride;
  static constexpr std::int64_t kColumns = 256;
  static constexpr std::int64_t kAhead = 8;  // rows

  static std::int64_t number_of(std::int64_t row, std::int64_t column) { return column * (column + 1) / 2 + row; }

  void reserve_tiles() {
    const std::int64_t all_tiles = tiles_ * (tiles_ + 1) / 2;
    const std::int64_t affordable = given_.kept_bytes / (kTile * static_cast<std::int64_t>(sizeof(float)));
    kept_ = all_tiles < affordable ? all_tiles : affordable;
    kept_tiles_ = Array<float>(kept_ * kTile);
  }

  bool keeps(std::int64_t number) const { return number < kept_; }

  // Where a tile is kept, or else is made by a thread.
  float* place_of(std::int64_t number, int thread) const {
    return keeps(number) ? kept_tiles_.get() + number * kTile : scratch_[0].get() + thread * kTile;
  }

  // Rows of block `block` that are not padding.
  std::int64_t real_in(std::int64_t block) const {
    const std::int64_t left = real_ - block * kSide;
    return left < 0 ? 0 : left < kSide ? left : kSide;
  }

  // Rows of block `block` in whole panels; those after the last row are zero.
  std::int64_t rows_in(const Rows& rows, std::int64_t block) const {
    const std::int64_t left = rows.padded() - block * kSide;
    return left < kSide ? left : kSide;
  }

  // The rows of one block for each thread, laid out for the right side of a product. Tiles are gone through column after
  // column, so that they are laid out once a column and thread.
  struct Packed {
    Packed() = default;
    Packed(int threads, std::int64_t columns) : values(threads * kStride * columns), block(threads) {
      for (int thread = 0; thread < threads; ++thread) block[thread] = -1;
    }

    Array<float> values;
    Array<std::int64_t> block;
  };

  void distances(const Rows& rows, std::int64_t row, std::int64_t column, int thread, float* out) const {
    const std::int64_t high = rows_in(rows, row), across = rows_in(rows, column);
    const Packed& packed = packed_[&rows == &rows_ ? 0 : 1];
    float* const right = packed.values.get() + thread * kStride * rows.columns();
    if (packed.block[thread] != column) {
      rows.pack(column * kSide, across, right, kStride);
      packed.block[thread] = column;
    }
    product_of_rows(rows.plain() + row * kSide * rows.stride(), rows.stride(), high, right, kStride, across,
                    rows.columns(), row == column, out, kStride);
    for (std::int64_t each = 0; each < high; ++each) {
      to_distances(rows.metric(), rows.sizes()[row * kSide + each], rows.sizes() + column * kSide, across,
                   out + each * kStride);
    }
  }

  // Call use(row within the tile, line) for the rows of a tile that have pairs; see Targets::with_line.
  template <class Use>
  void for_lines(std::int64_t row, std::int64_t column, float* target_tile, const Use& use) const {
    const Targets targets(given_, set_);
    const std::int64_t high = real_in(row), across = real_in(column);
    for (std::int64_t each = 0; each < high; ++each) {
      if (each + kAhead < high) targets.call_for(row * kSide + each + kAhead, column * kSide, across);
      float* made = given_.target_embeddings ? target_tile + each * kStride : nullptr;
      targets.with_line(row * kSide + each, column * kSide, across, made,
                        [&](const auto& line) { use(each, line); });
    }
  }

  template <bool kWeighted>
  Moments moments_of(std::int64_t row, std::int64_t column, const float* tile, float* target_tile) const {
    MomentSums<kWeighted> total;
    for_lines(row, column, target_tile, [&](std::int64_t each, const auto& line) {
      const float* const values = tile + each * kStride;
      MomentSums<kWeighted> sums;  // of the row, in registers
      line.for_each([&](std::int64_t place, Targets::Pairs pairs) __attribute__((always_inline)) {
        sums.add(load(values + place), pairs.h, pairs.weights);
      });
      total.add(sums);
    });
    return total.total();
  }

  Moments compute_distances(const Entries& entries, float* by_entry) {
    const std::int64_t count = tiles_ * (tiles_ + 1) / 2;
    Array<Moments> of_tiles(count);
    // column after column, so that the tiles that are kept are those of the first rows
    parallel_for(count, threads_, [&](std::int64_t number, int thread) {
      std::int64_t row = number, column = 0;
      while (row > column) row -= ++column;
      of_tiles[number] = Moments();
      float* tile = place_of(number, thread);
      if (!given_.has_target() && !entries.has_any(row, column)) return;
      distances(rows_, row, column, thread, tile);
      entries.gather(row, column, tile, by_entry);
      if (!given_.has_target()) return;
      float* target_tile = scratch_[1].get() + thread * kTile;
      if (given_.target_embeddings) distances(target_rows_, row, column, thread, target_tile);
      of_tiles[number] = given_.weights ? moments_of<true>(row, column, tile, target_tile)
                                        : moments_of<false>(row, column, tile, target_tile);
    });
    Moments total;
    for (std::int64_t each = 0; each < count; ++each) total.add(of_tiles[each]);
    return total;
  }

  TripletSums compute_triplets(float* by_entry) const {
    const std::int64_t chunks = triplets_.chunks();
    Array<TripletSums> of_chunks(chunks);
    Array<std::int32_t> wrong(chunks);
    parallel_for(chunks, threads_, [&](std::int64_t chunk, int) {
      wrong[chunk] = 0;
      of_chunks[chunk] = triplets_.compute(chunk, reinterpret_cast<float(*)[kChunk]>(by_entry + 3 * kChunk * chunk),
                                           given_.gradient != nullptr);
    });
    return merge(of_chunks, wrong, chunks);
  }

  void compute_gradient(const Entries& entries, const float* by_entry, const Slopes& slopes, float factor) {
    const Slopes scaled = {static_cast<float>(-given_.beta) * slopes.by_target,
                           static_cast<float>(-given_.beta) * slopes.by_distance, slopes.mean_h, slopes.mean_d};
    // where rows need no padding the gradient itself is where products are summed up
    const bool in_place = given_.columns % kPanel == 0 && given_.rows % kPanel == 0;
    const Array<float> own(in_place ? 0 : rows_.padded() * rows_.stride());
    const Sums sums = in_place ? Sums{given_.gradient + set_ * given_.rows * given_.columns, given_.columns}
                               : Sums{own.get(), rows_.stride()};
    Array<double> totals(rows_.padded());
    parallel_for(tiles_, threads_, [&](std::int64_t block, int) {
      const std::int64_t first = block * kSide, last = first + rows_in(rows_, block);
      std::memset(sums.data + first * sums.stride, 0,
                  sizeof(float) * static_cast<std::size_t>((last - first) * sums.stride));
      for (std::int64_t row = first; row < last; ++row) totals[row] = 0;
    });
    const auto add_tile = [&](std::int64_t row, std::int64_t column, int thread) {
      float* tile = place_of(number_of(row, column), thread);
      if (!derivatives(entries, by_entry, scaled, factor, row, column, thread, tile)) return;
      add_to_rows(row, column, tile, sums, totals.get());
    };
    parallel_for(tiles_, threads_, [&](std::int64_t block, int thread) { add_tile(block, block, thread); });
    const std::int64_t players = tiles_ + tiles_ % 2;  // one of an odd number of blocks sits out every round
    for (std::int64_t round = 0; round + 1 < players; ++round) {
      parallel_for(players / 2, threads_, [&](std::int64_t match, int thread) {
        std::int64_t one = match == 0 ? players - 1 : (round + match) % (players - 1);
        std::int64_t two = match == 0 ? round : (round - match + players - 1) % (players - 1);
        if (one > two) {
          const std::int64_t larger = one;
          one = two;
          two = larger;
        }
        if (two < tiles_) add_tile(one, two, thread);
      });
    }
    parallel_for(tiles_, threads_, [&](std::int64_t block, int) {
      for (std::int64_t row = block * kSide; row < (block + 1) * kSide && row < given_.rows; ++row) {
        finish_row(given_, rows_, set_, row, real_, static_cast<float>(totals[row]), sums.data + row * sums.stride);
      }
    });
  }

  // Where the products of derivatives and rows are summed up, row by row.
  struct Sums {
    float* data;
    std::int64_t stride;
  };

  // Fill a tile with the derivatives of the loss; false if there are none.
  bool derivatives(const Entries& entries, const float* by_entry, const Slopes& slopes, float factor, std::int64_t row,
                   std::int64_t column, int thread, float* tile) const {
    const bool correlated = given_.has_target() && given_.beta != 0;
    if (!correlated && !entries.has_any(row, column)) return false;
    if (correlated) {
      if (!keeps(number_of(row, column))) distances(rows_, row, column, thread, tile);
      float* target_tile = scratch_[1].get() + thread * kTile;
      if (given_.target_embeddings) distances(target_rows_, row, column, thread, target_tile);
      with_distance(given_.metric, [&](auto distance) {
        for_lines(row, column, target_tile, [&](std::int64_t each, const auto& line) {
          to_derivatives(distance, slopes, line, tile + each * kStride);
        });
      });
    }
    for (std::int64_t i = 0; i < kSide; ++i) {
      const std::int64_t rest = correlated && row * kSide + i < real_ ? real_ - column * kSide : 0;
      for (std::int64_t j = rest < 0 ? 0 : rest; j < kSide; ++j) tile[i * kStride + j] = 0;
    }
    entries.scatter(row, column, by_entry, factor, tile);
    return true;
  }

  // Add a tile's derivatives and their products with rows to the sums of its two blocks.
  void add_to_rows(std::int64_t row, std::int64_t column, float* tile, const Sums& sums, double* totals) const {
    const std::int64_t wide_columns = up_to(given_.columns, kPanel), stride = rows_.stride();
    const std::int64_t high = rows_in(rows_, row), across = rows_in(rows_, column);
    // so many columns of both blocks' rows and sums at a time as stay in cache beside the tile
    const auto add = [&](std::int64_t from, std::int64_t depth, std::int64_t to, std::int64_t rows, Left left) {
      for (std::int64_t first = 0; first < wide_columns; first += kColumns) {
        const std::int64_t columns = wide_columns - first < kColumns ? wide_columns - first : kColumns;
        for (std::int64_t k = 0; k < depth; k += kShallow) {
          const Left part = {left.data + k * left.column, left.row, left.column};
          product(part, rows_.plain() + (from * kSide + k) * stride + first, stride,
                  depth - k < kShallow ? depth - k : kShallow, rows, columns,
                  sums.data + to * kSide * sums.stride + first, sums.stride, true);
        }
      }
    };
    if (row == column) {  // its own mirror image
      for (std::int64_t i = 0; i < high; ++i) {
        for (std::int64_t j = 0; j < i; ++j) tile[i * kStride + j] = tile[j * kStride + i];
      }
    } else {
      for (std::int64_t part = 0; part < across; part += kPanel) {
        Doubles columns[kPanel / kHalf] = {};
        for (std::int64_t i = 0; i < high; ++i) add_columns<kPanel>(tile + i * kStride + part, columns);
        for (std::int64_t j = 0; j < kPanel; ++j) totals[column * kSide + part + j] += columns[j / kHalf][j % kHalf];
      }
      add(row, high, column, across, transposed(tile, kStride));
    }
    for (std::int64_t i = 0; i < high; ++i) totals[row * kSide + i] += row_sum(tile + i * kStride, across);
    add(column, across, row, high, as_it_is(tile, kStride));
  }

  const HybridLoss& given_;
  std::int64_t set_;
  int threads_;
  std::int64_t real_, tiles_;
  Triplets triplets_;
  Rows rows_, target_rows_;
  Array<float> scratch_[2];  // for every thread: a tile, and one of targets
  Packed packed_[2];         // embeddings and target embeddings
  std::int64_t kept_ = 0;
  Array<float> kept_tiles_;
};

}  // namespace bgs::cpu::BGS_ISA
