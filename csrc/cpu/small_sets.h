// The hybrid loss of a set whose matrix of distances stays in cache: it is made once and becomes, in place, the matrix
// of derivatives, which one product turns into the gradient.
#pragma once

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
  SmallSet(const HybridLoss& given, std::int64_t set, int threads)
      : given_(given),
        set_(set),
        threads_(threads),
        real_(real_rows(given, set)),
        rows_(given.rows, given.columns, given.metric),
        side_(tile_side(given.rows)),
        tiles_((given.rows + side_ - 1) / side_),
        stride_(spread_stride(tiles_ * side_)),
        matrix_(tiles_ * side_ * stride_) {}

  void run() {
    rows_.prepare(given_.embeddings, set_, real_, threads_);
    panels_ = packed(rows_);
    if (given_.target_embeddings) {
      target_rows_ = Rows(given_.rows, given_.target_columns, given_.target_metric);
      target_rows_.prepare(given_.target_embeddings, set_, real_, threads_);
      target_panels_ = packed(target_rows_);
    }
    const Moments moments = compute_distances();
    const Triplets triplets(given_, set_);
    Array<std::int32_t> places(3 * kChunk * triplets.chunks());
    Array<float> by_entry(3 * kChunk * triplets.chunks());
    const TripletSums sums = compute_triplets(triplets, places, by_entry);
    const Slopes slopes = finish_terms(given_, set_, sums, moments);
    if (given_.gradient == nullptr) return;
    compute_derivatives(slopes);
    const float factor = static_cast<float>(given_.alpha / (sums.weight == 0 ? 1 : sums.weight));
    for (std::int64_t chunk = 0; chunk < triplets.chunks(); ++chunk) {
      for (int pair = 0; pair < 3; ++pair) {
        const std::int64_t first = (3 * chunk + pair) * kChunk;
        for (std::int64_t each = first; each < first + triplets.chunk_size(chunk); ++each) {
          matrix_[places[each]] += factor * by_entry[each];
        }
      }
    }
    compute_gradient();
  }

 private:
  Array<float> packed(const Rows& rows) const {
    Array<float> panels(rows.padded() * rows.columns());
    parallel_for(rows.padded() / kPanel, threads_, [&](std::int64_t panel, int) {
      rows.pack(panel, 1, panels.get() + panel * kPanel * rows.columns());
    });
    return panels;
  }

  // Tiles small enough for every thread to get some.
  static std::int64_t tile_side(std::int64_t rows) { return rows <= 64 ? 32 : rows <= 512 ? 64 : 128; }

  // Call body(row of tiles, column, thread) for the tiles on and above the diagonal.
  template <class Body>
  void for_upper_tiles(const Body& body) const {
    parallel_for(tiles_ * (tiles_ + 1) / 2, threads_, [&](std::int64_t index, int thread) {
      std::int64_t row = 0;
      while (index >= tiles_ - row) index -= tiles_ - row++;
      body(row, row + index, thread);
    });
  }

  // Rows of block `block` that are not padding.
  std::int64_t real_in(std::int64_t block) const {
    const std::int64_t left = real_ - block * side_;
    return left < 0 ? 0 : left < side_ ? left : side_;
  }

  float* tile(std::int64_t row, std::int64_t column) const {
    return matrix_.get() + row * side_ * stride_ + column * side_;
  }

  // Products of two blocks of rows become distances; blocks are padded with zeros in the last.
  void distances(const Rows& rows, const Array<float>& packed_rows, std::int64_t row, std::int64_t column, float* out,
                 std::int64_t out_stride) const {
    const std::int64_t panels = side_ / kPanel, in_all = rows.padded() / kPanel;
    const auto there = [&](std::int64_t block) {
      return in_all - block * panels < panels ? in_all - block * panels : panels;
    };
    panel_product(rows.plain() + row * side_ * rows.stride(), rows.stride(), there(row),
                  packed_rows.get() + column * side_ * rows.columns(), there(column), rows.columns(), row == column, out,
                  out_stride);
    for (std::int64_t each = 0; each < there(row) * kPanel; ++each) {
      to_distances({rows.metric()}, rows.sizes()[row * side_ + each], rows.sizes() + column * side_,
                   there(column) * kPanel, out + each * out_stride);
    }
  }

  // Go through the rows of a tile with their targets: body(d, h, weights, count) for a stretch of `count` pairs.
  template <class Body>
  void with_targets(std::int64_t row, std::int64_t column, const float* target_tile, const Body& body) const {
    const Targets targets(given_, set_);
    alignas(64) float own[128], weights[128];
    const std::int64_t first = column * side_;
    const std::int64_t count = real_in(column);
    if (count == 0) return;
    const std::int64_t padded = up_to(count, kWidth);
    for (std::int64_t each = row * side_; each < (row + 1) * side_ && each < real_; ++each) {
      const float* made = target_tile + (each - row * side_) * kTargetStride;
      if (given_.target_embeddings) std::memcpy(own, made, sizeof(float) * static_cast<std::size_t>(count));
      targets.read_row(each, first, count, own, weights);
      for (std::int64_t k = count; k < padded; ++k) own[k] = weights[k] = 0;
      body(matrix_.get() + each * stride_ + first, own, weights, padded);
    }
  }

  Moments compute_distances() {
    const std::int64_t count = tiles_ * tiles_;
    Array<Moments> of_tiles(count);
    for (std::int64_t each = 0; each < count; ++each) of_tiles[each] = Moments();
    Array<float> scratch(given_.target_embeddings ? threads_ * kTargetTile : 0);
    for_upper_tiles([&](std::int64_t row, std::int64_t column, int thread) {
      Targets(given_, set_).call_for(row * side_, real_in(row), column * side_, real_in(column));
      distances(rows_, panels_, row, column, tile(row, column), stride_);
      if (!given_.has_target()) return;
      float* target_tile = scratch.get() + thread * kTargetTile;
      if (given_.target_embeddings) distances(target_rows_, target_panels_, row, column, target_tile, kTargetStride);
      MomentSums sums(static_cast<bool>(given_.weights));
      with_targets(row, column, target_tile, [&](const float* d, const float* h, const float* weights, std::int64_t n) {
        sums.add(d, h, weights, n);
      });
      of_tiles[row * tiles_ + column] = sums.total();
    });
    Moments total;
    for (std::int64_t each = 0; each < count; ++each) total.add(of_tiles[each]);
    return total;
  }

  TripletSums compute_triplets(const Triplets& triplets, const Array<std::int32_t>& places,
                               const Array<float>& by_entry) const {
    const std::int64_t chunks = triplets.chunks();
    Array<TripletSums> of_chunks(chunks);
    Array<std::int32_t> wrong(chunks);
    parallel_for(chunks, threads_, [&](std::int64_t chunk, int) {
      std::int32_t smaller[3][kChunk], larger[3][kChunk];
      wrong[chunk] = !triplets.read_rows(chunk, smaller, larger);
      if (wrong[chunk]) return;
      const std::int64_t count = triplets.chunk_size(chunk);
      auto* place = reinterpret_cast<std::int32_t(*)[kChunk]>(places.get() + 3 * kChunk * chunk);
      auto* values = reinterpret_cast<float(*)[kChunk]>(by_entry.get() + 3 * kChunk * chunk);
      for (int pair = 0; pair < 3; ++pair) {
        for (std::int64_t each = 0; each < count; ++each) {
          place[pair][each] = smaller[pair][each] * static_cast<std::int32_t>(stride_) + larger[pair][each];
          values[pair][each] = matrix_[place[pair][each]];
        }
      }
      of_chunks[chunk] = triplets.compute(chunk, values, given_.gradient != nullptr);
    });
    return merge(of_chunks, wrong, chunks);
  }

  void compute_derivatives(const Slopes& slopes) const {
    const Slopes scaled = {static_cast<float>(-given_.beta) * slopes.by_target,
                           static_cast<float>(-given_.beta) * slopes.by_distance, slopes.mean_h, slopes.mean_d};
    Array<float> scratch(given_.target_embeddings ? threads_ * kTargetTile : 0);
    const bool correlated = given_.has_target() && given_.beta != 0;
    for_upper_tiles([&](std::int64_t row, std::int64_t column, int thread) {
      float* target_tile = scratch.get() + thread * kTargetTile;
      if (correlated && given_.target_embeddings) distances(target_rows_, target_panels_, row, column, target_tile, kTargetStride);
      if (correlated) {
        with_targets(row, column, target_tile,
                     [&](const float* d, const float* h, const float* weights, std::int64_t n) {
                       to_derivatives({given_.metric}, scaled, h, weights, n, const_cast<float*>(d));
                     });
      }
      // what belongs to no pair: all without a correlation, else padding
      float* values = tile(row, column);
      for (std::int64_t i = 0; i < side_; ++i) {
        const bool real = correlated && row * side_ + i < real_;
        const std::int64_t rest = real ? real_ - column * side_ : 0;
        for (std::int64_t j = rest < 0 ? 0 : rest; j < side_; ++j) values[i * stride_ + j] = 0;
      }
    });
  }

  // The matrix holds the derivatives by pairs i < j: row i of the symmetric one is column i down to the diagonal and row
  // i from there on.
  void compute_gradient() const {
    const std::int64_t padded = rows_.padded(), groups = padded / kPanel, stride = rows_.stride();
    const std::int64_t wide_columns = up_to(given_.columns, kPanel);
    Array<float> products(padded * stride);
    parallel_for(groups, threads_, [&](std::int64_t group, int) {
      const std::int64_t first = group * kPanel, last = first + kPanel;
      float* out = products.get() + first * stride;
      alignas(64) float diagonal[kPanel * kPanel];
      for (std::int64_t i = 0; i < kPanel; ++i) {
        for (std::int64_t j = 0; j < kPanel; ++j) {
          diagonal[i * kPanel + j] = matrix_[(first + (i < j ? i : j)) * stride_ + first + (i < j ? j : i)];
        }
      }
      product(transposed(diagonal, kPanel), rows_.plain() + first * stride, stride, kPanel, kPanel, wide_columns, out,
              stride, false);
      for (std::int64_t from = 0; from < first; from += kDepth) {
        product(transposed(matrix_.get() + from * stride_ + first, stride_), rows_.plain() + from * stride, stride,
                first - from < kDepth ? first - from : kDepth, kPanel, wide_columns, out, stride, true);
      }
      for (std::int64_t from = last; from < padded; from += kDepth) {
        product(as_it_is(matrix_.get() + first * stride_ + from, stride_), rows_.plain() + from * stride, stride,
                padded - from < kDepth ? padded - from : kDepth, kPanel, wide_columns, out, stride, true);
      }
      Doubles totals[kPanel / kHalf] = {};
      for (std::int64_t k = 0; k < first; ++k) add_columns<kPanel>(matrix_.get() + k * stride_ + first, totals);
      for (std::int64_t k = 0; k < kPanel; ++k) add_columns<kPanel>(diagonal + k * kPanel, totals);
      for (std::int64_t i = 0; i < kPanel && first + i < given_.rows; ++i) {
        const float total = static_cast<float>(totals[i / kHalf][i % kHalf] +
                                               row_sum(matrix_.get() + (first + i) * stride_ + last, padded - last));
        finish_row(given_, rows_, set_, first + i, real_, total, out + i * stride);
      }
    });
  }

  static constexpr std::int64_t kTargetStride = 128;
  static constexpr std::int64_t kTargetTile = 128 * kTargetStride;

  const HybridLoss& given_;
  std::int64_t set_;
  int threads_;
  std::int64_t real_;
  Rows rows_, target_rows_;
  Array<float> panels_, target_panels_;
  std::int64_t side_, tiles_, stride_;
  Array<float> matrix_;
};

}  // namespace bgs::cpu::BGS_ISA
