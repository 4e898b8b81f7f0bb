// Pairwise distances for the instruction set BGS_ISA, and their gradient.
#include <cstdint>
#include <cstring>

#include "cpu/pairs.h"
#include "cpu/pairwise_distance.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/set_loss.h"

namespace bgs::cpu::BGS_ISA {

class DistanceMatrix {
 public:
  DistanceMatrix(const PairwiseDistance& given, std::int64_t set)
      : given_(given),
        set_(set),
        x_(given.rows, given.columns, given.metric),
        tiles_(given.threads * kTile) {
    x_.prepare(given.x, set, given.rows, given.threads);
    if (given.y) {
      y_ = Rows(given.others, given.columns, given.metric);
      y_.prepare(given.y, set, given.others, given.threads, x_.origin());
    }
  }

  void compute() const {
    const std::int64_t high = blocks(given_.rows), across = blocks(given_.others);
    const Array<float> packed(across * given_.columns * kPackedStride);
    parallel_for(across, given_.threads, [&](std::int64_t block, int) {
      others().pack(block * kSide, rows_in(others(), block), packed.get() + block * given_.columns * kPackedStride,
                    kPackedStride);
    });
    parallel_for(high * across, given_.threads, [&](std::int64_t index, int thread) {
      const std::int64_t row = index / across, column = index % across;
      if (!given_.y && row > column) return;
      float* tile = tiles_.get() + thread * kTile;
      product_of_rows(x_.plain() + row * kSide * x_.stride(), x_.stride(), rows_in(x_, row),
                      packed.get() + column * given_.columns * kPackedStride, kPackedStride, rows_in(others(), column),
                      given_.columns, false, tile, kSide);
      for (std::int64_t i = 0; i < count(given_.rows, row); ++i) {
        float* values = tile + i * kSide;
        to_distances(given_.metric, x_.sizes()[row * kSide + i], others().sizes() + column * kSide,
                     rows_in(others(), column), values);
        // below the diagonal of a matrix that is its own mirror image stands what stands above
        for (std::int64_t j = 0; !given_.y && row == column && j < i; ++j) values[j] = tile[j * kSide + i];
        std::memcpy(at(row * kSide + i, column * kSide), values,
                    sizeof(float) * static_cast<std::size_t>(count(given_.others, column)));
      }
      if (given_.y || row == column) return;
      for (std::int64_t j = 0; j < count(given_.others, column); ++j) {
        float* mirrored = at(column * kSide + j, row * kSide);
        for (std::int64_t i = 0; i < count(given_.rows, row); ++i) mirrored[i] = tile[i * kSide + j];
      }
    });
  }

  void differentiate() const {
    differentiate_rows(x_, others(), false, !given_.y, given_.x_gradient);
    if (given_.y) differentiate_rows(y_, x_, true, false, given_.y_gradient);
  }

 private:
  static constexpr std::int64_t kSide = 128;
  static constexpr std::int64_t kTile = kSide * kSide;
  static constexpr std::int64_t kPackedStride = kSide + 16;  // an odd number of cache lines

  const Rows& others() const { return given_.y ? y_ : x_; }

  static std::int64_t blocks(std::int64_t rows) { return (rows + kSide - 1) / kSide; }

  static std::int64_t count(std::int64_t rows, std::int64_t block) {
    return rows - block * kSide < kSide ? rows - block * kSide : kSide;
  }

  // Rows of a block in whole panels.
  static std::int64_t rows_in(const Rows& rows, std::int64_t block) {
    const std::int64_t left = rows.padded() - block * kSide;
    return left < kSide ? left : kSide;
  }

  float* at(std::int64_t row, std::int64_t column) const {
    return given_.distances + (set_ * given_.rows + row) * given_.others + column;
  }

  // The gradient by rows `mine` of distances to rows `theirs`, which are the columns of the matrix or, `turned`, its
  // rows; `both` if they are both.
  void differentiate_rows(const Rows& mine, const Rows& theirs, bool turned, bool both, float* out) const {
    const std::int64_t mine_count = turned ? given_.others : given_.rows;
    const std::int64_t their_count = turned ? given_.rows : given_.others;
    const std::int64_t stride = mine.stride(), wide_columns = up_to(given_.columns, kPanel);
    Array<float> products(mine.padded() * stride);
    parallel_for(blocks(mine_count), given_.threads, [&](std::int64_t block, int thread) {
      float* tile = tiles_.get() + thread * kTile;
      float* sums = products.get() + block * kSide * stride;
      const std::int64_t mine_rows = count(mine_count, block), padded = rows_in(mine, block);
      double totals[kSide] = {};
      std::memset(sums, 0, sizeof(float) * static_cast<std::size_t>(padded * stride));
      for (std::int64_t other = 0; other < blocks(their_count); ++other) {
        for (int way = 0; way < (both ? 2 : 1); ++way) {
          fill_derivatives(tile, block, mine_rows, other, count(their_count, other), turned || way == 1);
          for (std::int64_t i = 0; i < mine_rows; ++i) totals[i] += row_sum(tile + i * kSide, kSide);
          product(as_it_is(tile, kSide), theirs.plain() + other * kSide * theirs.stride(), theirs.stride(),
                  rows_in(theirs, other), padded, wide_columns, sums, stride, true);
        }
      }
      for (std::int64_t i = 0; i < mine_rows; ++i) {
        const std::int64_t row = block * kSide + i;
        const float total = static_cast<float>(totals[i]);
        finish_gradient(mine, row, total, sums + i * stride, out + (set_ * mine_count + row) * given_.columns);
      }
    });
  }

  // tile[i][j]: the derivative of the loss by |x - y|^2 for row i of `block` and row j of `other`, 0 beyond their ends.
  void fill_derivatives(float* tile, std::int64_t block, std::int64_t rows, std::int64_t other, std::int64_t columns,
                        bool turned) const {
    const Tensor& upstream = given_.upstream;
    std::memset(tile, 0, sizeof(float) * kTile);
    const std::int64_t high = turned ? columns : rows, across = turned ? rows : columns;
    const std::int64_t first_row = (turned ? other : block) * kSide, first_column = (turned ? block : other) * kSide;
    alignas(64) float by_distance[kSide], own[kSide];
    for (std::int64_t i = 0; i < high; ++i) {
      const std::int64_t from = set_ * upstream.stride[0] + (first_row + i) * upstream.stride[1] +
                                first_column * upstream.stride[2];
      read(upstream, from, upstream.stride[2], across, by_distance);
      std::memcpy(own, at(first_row + i, first_column), sizeof(float) * static_cast<std::size_t>(across));
      for (std::int64_t j = across; j < up_to(across, kWidth); ++j) by_distance[j] = own[j] = 0;
      with_distance(given_.metric, [&](auto distance) {
        for (std::int64_t j = 0; j < across; j += kWidth) {
          store(by_distance + j, load(by_distance + j) * distance.slope(load(own + j)));
        }
      });
      for (std::int64_t j = 0; j < across; ++j) tile[turned ? j * kSide + i : i * kSide + j] = by_distance[j];
    }
  }

  const PairwiseDistance& given_;
  std::int64_t set_;
  Rows x_, y_;
  Array<float> tiles_;  // one for every thread
};

void pairwise_distance(const PairwiseDistance& given) {
  for (std::int64_t set = 0; set < given.sets; ++set) {
    const DistanceMatrix matrix(given, set);
    if (given.upstream) {
      matrix.differentiate();
    } else {
      matrix.compute();
    }
  }
}

}  // namespace bgs::cpu::BGS_ISA
