// How Python hands tensors to csrc: as a tuple (address, dtype, strides), or None for one that was not given. Each
// subject binds its functions in a file of its own and is named here.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "tensor.h"

namespace bgs {

void bind_losses(pybind11::module_& module);
void bind_statistics(pybind11::module_& module);
#if defined(BGS_CUDA_ARCHITECTURES)
void bind_cuda(pybind11::module_& module);
#endif

}  // namespace bgs

namespace pybind11::detail {

template <>
struct type_caster<bgs::Tensor> {
  PYBIND11_TYPE_CASTER(bgs::Tensor, const_name("tuple[int, int, tuple[int, ...]] | None"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    if (!isinstance<tuple>(source)) return false;
    const auto parts = reinterpret_borrow<tuple>(source);
    if (parts.size() != 3 || !isinstance<tuple>(parts[2])) return false;
    // a tensor without elements has no address, but was given all the same
    static constexpr char kNothing = 0;
    const auto address = parts[0].cast<std::uintptr_t>();
    value.data = address == 0 ? &kNothing : reinterpret_cast<const void*>(address);
    value.dtype = static_cast<bgs::DType>(parts[1].cast<std::int32_t>());
    const auto strides = reinterpret_borrow<tuple>(parts[2]);
    if (strides.size() > 3) return false;
    for (std::size_t each = 0; each < strides.size(); ++each) value.stride[each] = strides[each].cast<std::int64_t>();
    return true;
  }
};

}  // namespace pybind11::detail
