// Elements of tensors of any dtype, as float or as integers. Plain C++ but for the words that nvcc wants, so that the
// tests can run it on a CPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "tensor.h"

namespace bgs::cuda {

template <typename To, typename From>
__device__ inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a value keeps its size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

struct Half {
  std::uint16_t bits;

  __device__ explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t rest = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
    if (rest >= 0x1f << 23) return same_bits<float>(sign | 0x7f800000u | rest);  // an infinity or NaN
    // the exponents' origins lie 112 apart, and multiplying makes numbers of what was subnormal, exactly
    const float size = same_bits<float>(rest) * 0x1p112f;
    return sign ? -size : size;
  }
};

struct BFloat16 {
  std::uint16_t bits;

  __device__ explicit operator float() const { return same_bits<float>(static_cast<std::uint32_t>(bits) << 16); }
};

// Calls `use` with a value of the C++ type of a real dtype. The branch is the same for all threads; what `use` loads in
// a loop stays in flight together, which it would not if the branch were in the loop.
template <typename Use>
__device__ inline void with_real(DType dtype, Use&& use) {
  switch (dtype) {
    case DType::kFloat32: return use(float{});
    case DType::kFloat64: return use(double{});
    case DType::kFloat16: return use(Half{});
    case DType::kBFloat16: return use(BFloat16{});
    case DType::kInt64: return use(std::int64_t{});
    case DType::kInt32: return use(std::int32_t{});
    case DType::kInt16: return use(std::int16_t{});
    case DType::kInt8: return use(std::int8_t{});
    default: return use(std::uint8_t{});  // truth values are bytes too
  }
}

template <typename Use>
__device__ inline void with_integer(DType dtype, Use&& use) {
  switch (dtype) {
    case DType::kInt64: return use(std::int64_t{});
    case DType::kInt32: return use(std::int32_t{});
    case DType::kInt16: return use(std::int16_t{});
    case DType::kInt8: return use(std::int8_t{});
    default: return use(std::uint8_t{});
  }
}

// Loads numbers at offsets (in elements); 0 where not wanted.
template <int kCount>
__device__ inline void load_reals(const Tensor& tensor, const std::int64_t (&offsets)[kCount],
                                  const bool (&wanted)[kCount], float (&values)[kCount]) {
  with_real(tensor.dtype, [&](auto type) {
    using Type = decltype(type);
    const Type* data = static_cast<const Type*>(tensor.data);
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = wanted[k] ? static_cast<float>(data[offsets[k]]) : 0.0f;
  });
}

__device__ inline float load_real(const Tensor& tensor, std::int64_t offset) {
  float value[1];
  load_reals<1>(tensor, {offset}, {true}, value);
  return value[0];
}

// Loads integers that lie `stride` elements apart.
template <int kCount>
__device__ inline void load_integers(const Tensor& tensor, std::int64_t offset, std::int64_t stride,
                                     std::int64_t (&values)[kCount]) {
  with_integer(tensor.dtype, [&](auto type) {
    using Type = decltype(type);
    const Type* data = static_cast<const Type*>(tensor.data) + offset;
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = static_cast<std::int64_t>(data[k * stride]);
  });
}

}  // namespace bgs::cuda
