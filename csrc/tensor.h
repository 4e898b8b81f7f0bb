// What a tensor is to csrc: a pointer, a dtype and strides. Sizes are told once for all tensors of a call.
#pragma once

#include <cstdint>

namespace bgs {

// The dtypes of torch that kernels read; bgs_kernels/native.py holds the same numbers.
enum class DType : std::int32_t {
  kFloat32 = 0,
  kFloat64 = 1,
  kFloat16 = 2,
  kBFloat16 = 3,
  kInt64 = 4,
  kInt32 = 5,
  kInt16 = 6,
  kInt8 = 7,
  kUInt8 = 8,
  kBool = 9,
};

// A tensor of up to three dimensions, set x row x column or a part of these; strides count elements and may be 0 or
// negative. `data` is null for a tensor that was not given.
struct Tensor {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t stride[3] = {0, 0, 0};

  explicit operator bool() const { return data != nullptr; }

  // The same with a dimension of sets before the others, of which all sets are the same.
  Tensor of_every_set() const {
    Tensor tensor = *this;
    tensor.stride[2] = stride[1];
    tensor.stride[1] = stride[0];
    tensor.stride[0] = 0;
    return tensor;
  }
};

}  // namespace bgs
