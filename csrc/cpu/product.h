// Products of matrices in blocks that stay in cache, the only part of the loss that is bound by arithmetic.
//
// Entries of a product's left factor are broadcast one by one, of eight (four) rows at a time; it can be given as it is or
// transposed. The right factor is read 32 columns at a time: rows of embeddings that stand there transposed are laid out
// in panels of 32 rows, column after column.
#pragma once

#include <cstdint>

#include "cpu/vector.h"

namespace bgs::cpu::BGS_ISA {

constexpr int kPanel = 32;      // rows of a panel, columns of a block of a product
constexpr int kStrip = kWidth == 16 ? 8 : 4;  // rows of a block: its sums fit the registers
constexpr int kBlockVectors = 2;
constexpr int kBlockColumns = kBlockVectors * kWidth;
constexpr std::int64_t kDepth = 256;  // products that are summed up before they are added to the rest

// The left factor of a product: its entry in row i and column k is data[i * row + k * column]; row or column is 1.
struct Left {
  const float* data;
  std::int64_t row, column;
};

inline Left as_it_is(const float* data, std::int64_t stride) { return {data, stride, 1}; }

inline Left transposed(const float* data, std::int64_t stride) { return {data, 1, stride}; }

// out (kStrip, kBlockColumns) (+)= left (kStrip, depth) right (depth, kBlockColumns); kAhead: the next kBlockColumns of
// right are called for meanwhile.
template <bool kTransposed, bool kAdd, bool kAhead>
inline void block_product(const float* __restrict left, std::int64_t left_stride, const float* right, std::int64_t right_stride,
                          std::int64_t depth, float* out, std::int64_t out_stride) {
  Floats sums[kStrip][kBlockVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kStrip; ++i) {
    if (kAdd) {
      for (int j = 0; j < kBlockColumns; j += 16) __builtin_prefetch(out + i * out_stride + j, 1);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kBlockVectors; ++j) sums[i][j] = Floats{};
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Floats row[kBlockVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kBlockVectors; ++j) row[j] = load(right + j * kWidth);
    if (kAhead) {
      for (int j = 0; j < kBlockColumns; j += 16) __builtin_prefetch(right + kBlockColumns + j);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kStrip; ++i) {
      const Floats entry = all(kTransposed ? left[i] : left[i * left_stride]);
#pragma GCC unroll 4
      for (int j = 0; j < kBlockVectors; ++j) sums[i][j] += entry * row[j];
    }
    left += kTransposed ? left_stride : 1;
    right += right_stride;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kStrip; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kBlockVectors; ++j) {
      float* place = out + i * out_stride + j * kWidth;
      store(place, kAdd ? load(place) + sums[i][j] : sums[i][j]);
    }
  }
}

template <bool kTransposed>
inline void product_in_blocks(Left left, const float* right, std::int64_t right_stride, std::int64_t depth,
                              std::int64_t rows, std::int64_t columns, float* out, std::int64_t out_stride, bool add) {
  const std::int64_t stride = kTransposed ? left.column : left.row;
  for (std::int64_t j = 0; j < columns; j += kBlockColumns) {
    for (std::int64_t i = 0; i < rows; i += kStrip) {
      const float* from = left.data + i * left.row;
      float* to = out + i * out_stride + j;
      if (!add) {
        block_product<kTransposed, false, false>(from, stride, right + j, right_stride, depth, to, out_stride);
      } else if (i == 0 && j + kBlockColumns < columns) {
        block_product<kTransposed, true, true>(from, stride, right + j, right_stride, depth, to, out_stride);
      } else {
        block_product<kTransposed, true, false>(from, stride, right + j, right_stride, depth, to, out_stride);
      }
    }
  }
}

// out (rows, columns) (+)= left (rows, depth) right (depth, columns); rows and columns are multiples of kPanel.
inline void product(Left left, const float* right, std::int64_t right_stride, std::int64_t depth, std::int64_t rows,
                    std::int64_t columns, float* out, std::int64_t out_stride, bool add) {
  if (left.row == 1) {
    product_in_blocks<true>(left, right, right_stride, depth, rows, columns, out, out_stride, add);
  } else {
    product_in_blocks<false>(left, right, right_stride, depth, rows, columns, out, out_stride, add);
  }
}

// out (one_panels, two_panels) = one two^T in panels of rows, `one` row-major and `two` laid out in panels; of `triangle`
// only the blocks on and above the diagonal are made, the others become 0.
inline void panel_product(const float* one, std::int64_t one_stride, std::int64_t one_panels, const float* two,
                          std::int64_t two_panels, std::int64_t depth, bool triangle, float* out,
                          std::int64_t out_stride) {
  for (std::int64_t first = 0; first < depth; first += kDepth) {
    const std::int64_t length = depth - first < kDepth ? depth - first : kDepth;
    for (std::int64_t j = 0; j < two_panels; ++j) {
      const std::int64_t made = triangle && j < one_panels ? j + 1 : one_panels;
      product(as_it_is(one + first, one_stride), two + (j * depth + first) * kPanel, kPanel, length, made * kPanel,
              kPanel, out + j * kPanel, out_stride, first > 0);
      for (std::int64_t i = made * kPanel; first == 0 && i < one_panels * kPanel; ++i) {
        for (std::int64_t k = 0; k < kPanel; ++k) out[i * out_stride + j * kPanel + k] = 0;
      }
    }
  }
}

}  // namespace bgs::cpu::BGS_ISA
