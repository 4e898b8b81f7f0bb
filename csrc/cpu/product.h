// Products of matrices in blocks that stay in cache, the only part of the loss that is bound by arithmetic.
//
// Entries of a product's left factor are broadcast one by one, of eight (four) rows at a time; it can be given as it is or
// transposed. The right factor is read three vectors at a time: rows of embeddings that stand there transposed are laid
// out column after column.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/vector.h"

namespace bgs::cpu::BGS_ISA {

constexpr int kPanel = 32;                    // rows and columns of products are multiples of it
constexpr int kStrip = kWidth == 16 ? 8 : 4;  // rows of a block: its sums, 3 vectors a row, fill the registers
constexpr int kBlockVectors = 3;
constexpr std::int64_t kDepth = 256;    // products that are summed up before they are added to the rest
constexpr std::int64_t kShallow = 64;   // the same where neither factor is laid out for it: what is read fits the L1 cache

// The left factor of a product: its entry in row i and column k is data[i * row + k * column]; row or column is 1.
struct Left {
  const float* data;
  std::int64_t row, column;
};

inline Left as_it_is(const float* data, std::int64_t stride) { return {data, stride, 1}; }

inline Left transposed(const float* data, std::int64_t stride) { return {data, 1, stride}; }

// out (kStrip, kVectors vectors) (+)= left (kStrip, depth) right (depth, kVectors vectors); kAhead: the vectors of right
// that follow are called for meanwhile.
template <int kVectors, bool kTransposed, bool kAdd, bool kAhead>
inline void block_product(const float* __restrict left, std::int64_t left_stride, const float* right,
                          std::int64_t right_stride, std::int64_t depth, float* out, std::int64_t out_stride) {
  Floats sums[kStrip][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kStrip; ++i) {
    // another core may hold them
    for (int j = 0; j < kVectors * kWidth; j += 16) __builtin_prefetch(out + i * out_stride + j, 1);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[i][j] = Floats{};
  }
  // a pointer for every three rows: an address is one register plus once or twice another
  constexpr int kPointers = kTransposed ? 1 : (kStrip + 2) / 3;
  const float* from[kPointers];
#pragma GCC unroll 4
  for (int each = 0; each < kPointers; ++each) from[each] = left + 3 * each * left_stride;
  for (std::int64_t k = 0; k < depth; ++k) {
    Floats row[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) row[j] = load(right + j * kWidth);
    if (kAhead) {
      for (int j = 0; j < kVectors * kWidth; j += 16) __builtin_prefetch(right + kVectors * kWidth + j);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kStrip; ++i) {
      const Floats entry = all(kTransposed ? from[0][i] : from[i / 3][i % 3 * left_stride]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[i][j] += entry * row[j];
    }
#pragma GCC unroll 4
    for (int each = 0; each < kPointers; ++each) {
      from[each] += kTransposed ? left_stride : 1;
      // the compiler would rather keep a pointer for every row, and most of those in memory
      asm("" : "+r"(from[each]));
    }
    right += right_stride;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kStrip; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* place = out + i * out_stride + j * kWidth;
      store(place, kAdd ? load(place) + sums[i][j] : sums[i][j]);
    }
  }
}

// The same for `rows` rows.
template <int kVectors, bool kTransposed, bool kAdd>
inline void column_product(Left left, const float* right, std::int64_t right_stride, std::int64_t depth,
                           std::int64_t rows, bool ahead, float* out, std::int64_t out_stride) {
  const std::int64_t stride = kTransposed ? left.column : left.row;
  for (std::int64_t i = 0; i < rows; i += kStrip) {
    const float* from = left.data + i * left.row;
    if (ahead && i == 0) {
      block_product<kVectors, kTransposed, kAdd, true>(from, stride, right, right_stride, depth, out, out_stride);
    } else {
      block_product<kVectors, kTransposed, kAdd, false>(from, stride, right, right_stride, depth, out + i * out_stride,
                                                        out_stride);
    }
  }
}

// Of a triangle only what lies on and above the diagonal is made, in whole blocks.
template <bool kTransposed, bool kAdd>
inline void product_as(Left left, const float* right, std::int64_t right_stride, std::int64_t depth, std::int64_t rows,
                       std::int64_t columns, bool triangle, float* out, std::int64_t out_stride) {
  constexpr std::int64_t kColumns = kBlockVectors * kWidth;
  std::int64_t j = 0;
  const auto high = [&](std::int64_t end) { return triangle && end < rows ? end : rows; };
  for (; j + kColumns <= columns; j += kColumns) {
    column_product<kBlockVectors, kTransposed, kAdd>(left, right + j, right_stride, depth, high(j + kColumns),
                                                     kAdd && j + kColumns < columns, out + j, out_stride);
  }
  if (j + 2 * kWidth <= columns) {
    column_product<2, kTransposed, kAdd>(left, right + j, right_stride, depth, high(j + 2 * kWidth), false, out + j,
                                         out_stride);
    j += 2 * kWidth;
  }
  if (j < columns) {
    column_product<1, kTransposed, kAdd>(left, right + j, right_stride, depth, high(j + kWidth), false, out + j,
                                         out_stride);
  }
}

// out (rows, columns) (+)= left (rows, depth) right (depth, columns); rows and columns are multiples of kPanel.
inline void product(Left left, const float* right, std::int64_t right_stride, std::int64_t depth, std::int64_t rows,
                    std::int64_t columns, float* out, std::int64_t out_stride, bool add, bool triangle = false) {
  const auto make = [&](auto transposed_left, auto added) {
    product_as<transposed_left.value, added.value>(left, right, right_stride, depth, rows, columns, triangle, out,
                                                   out_stride);
  };
  const std::true_type yes;
  const std::false_type no;
  if (left.row == 1) {
    add ? make(yes, yes) : make(yes, no);
  } else {
    add ? make(no, yes) : make(no, no);
  }
}

// out (rows, columns) = one two^T, `one` row-major and `two` laid out column after column; of a triangle only what lies on
// and above the diagonal is made, in whole blocks.
inline void product_of_rows(const float* one, std::int64_t one_stride, std::int64_t rows, const float* two,
                            std::int64_t two_stride, std::int64_t columns, std::int64_t depth, bool triangle, float* out,
                            std::int64_t out_stride) {
  for (std::int64_t first = 0; first < depth; first += kDepth) {
    product(as_it_is(one + first, one_stride), two + first * two_stride, two_stride,
            depth - first < kDepth ? depth - first : kDepth, rows, columns, out, out_stride, first > 0, triangle);
  }
}

}  // namespace bgs::cpu::BGS_ISA
