// Reading tensors of any dtype as float32, and their indices.
#pragma once

#include <cstdint>
#include <cstring>

#include "tensor.h"

namespace bgs::cpu::BGS_ISA {

inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct Half {
  std::uint16_t bits;
  operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
    const std::uint32_t rest = static_cast<std::uint32_t>(bits & 0x7fff) << 13;
    const float finite = bits_to_float(rest) * 0x1p112f;
    const float special = bits_to_float(rest | 0x7f800000u);
    const float size = rest >= (0x7c00u << 13) ? special : finite;
    std::uint32_t written;
    std::memcpy(&written, &size, sizeof written);
    return bits_to_float(written | sign);
  }
};

struct BFloat16 {
  std::uint16_t bits;
  operator float() const { return bits_to_float(static_cast<std::uint32_t>(bits) << 16); }
};

template <class Element>
inline void read_as(const void* data, std::int64_t first, std::int64_t stride, std::int64_t count, float* out) {
  const Element* from = static_cast<const Element*>(data) + first;
  if (stride == 1) {
    for (std::int64_t each = 0; each < count; ++each) out[each] = static_cast<float>(from[each]);
  } else {
    for (std::int64_t each = 0; each < count; ++each) out[each] = static_cast<float>(from[each * stride]);
  }
}

// out[each] = element first + each * stride of a tensor.
inline void read(const Tensor& tensor, std::int64_t first, std::int64_t stride, std::int64_t count, float* out) {
  switch (tensor.dtype) {
    case DType::kFloat32:
      return read_as<float>(tensor.data, first, stride, count, out);
    case DType::kFloat64:
      return read_as<double>(tensor.data, first, stride, count, out);
    case DType::kFloat16:
      return read_as<Half>(tensor.data, first, stride, count, out);
    case DType::kBFloat16:
      return read_as<BFloat16>(tensor.data, first, stride, count, out);
    case DType::kInt64:
      return read_as<std::int64_t>(tensor.data, first, stride, count, out);
    case DType::kInt32:
      return read_as<std::int32_t>(tensor.data, first, stride, count, out);
    case DType::kInt16:
      return read_as<std::int16_t>(tensor.data, first, stride, count, out);
    case DType::kInt8:
      return read_as<std::int8_t>(tensor.data, first, stride, count, out);
    case DType::kUInt8:
    case DType::kBool:
      return read_as<std::uint8_t>(tensor.data, first, stride, count, out);
  }
}

template <class Element>
inline bool read_indices_as(const void* data, std::int64_t first, std::int64_t stride, std::int64_t count,
                            std::int64_t limit, std::int32_t* out) {
  const Element* from = static_cast<const Element*>(data) + first;
  std::uint64_t outside = 0;
  const auto take = [&](std::int64_t each, std::int64_t index) {
    outside |= static_cast<std::uint64_t>(static_cast<std::uint64_t>(index) >= static_cast<std::uint64_t>(limit));
    out[each] = static_cast<std::int32_t>(index);
  };
  if (stride == 1) {
    for (std::int64_t each = 0; each < count; ++each) take(each, static_cast<std::int64_t>(from[each]));
  } else {
    for (std::int64_t each = 0; each < count; ++each) take(each, static_cast<std::int64_t>(from[each * stride]));
  }
  return outside == 0;
}

// The same for integers, of which none may be negative or reach the limit: says whether that is so.
inline bool read_indices(const Tensor& tensor, std::int64_t first, std::int64_t stride, std::int64_t count,
                         std::int64_t limit, std::int32_t* out) {
  switch (tensor.dtype) {
    case DType::kInt64:
      return read_indices_as<std::int64_t>(tensor.data, first, stride, count, limit, out);
    case DType::kInt32:
      return read_indices_as<std::int32_t>(tensor.data, first, stride, count, limit, out);
    case DType::kInt16:
      return read_indices_as<std::int16_t>(tensor.data, first, stride, count, limit, out);
    case DType::kInt8:
      return read_indices_as<std::int8_t>(tensor.data, first, stride, count, limit, out);
    case DType::kUInt8:
      return read_indices_as<std::uint8_t>(tensor.data, first, stride, count, limit, out);
    default:
      return false;
  }
}

}  // namespace bgs::cpu::BGS_ISA
