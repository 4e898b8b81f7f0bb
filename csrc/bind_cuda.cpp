// Binds the CUDA kernels. Nothing here asks CUDA for anything before a function is called.
#include "bind.h"
#include "cuda/bind_hybrid_small.h"
#include "cuda/ranks.h"

namespace py = pybind11;

namespace bgs {

namespace {

void fractional_rank(Tensor values, std::int64_t sets, std::int64_t count, Tensor ranks, std::uintptr_t workspace,
                     std::size_t bytes, int device, std::uintptr_t stream) {
  const cuda::FractionalRank call{values, sets, count, static_cast<double*>(const_cast<void*>(ranks.data))};
  cuda::fractional_rank(call, reinterpret_cast<void*>(workspace), bytes, device, stream);
}

}  // namespace

void bind_cuda(py::module_& module) {
  cuda::bind_hybrid_small(module, &cuda::launch_hybrid_small);
  module.def("cuda_fractional_rank_workspace", &cuda::fractional_rank_workspace, py::arg("sets"), py::arg("count"),
             py::arg("device"), py::call_guard<py::gil_scoped_release>(),
             "Count the bytes of device memory, aligned to 256, that cuda_fractional_rank needs to work in.");
  module.def("cuda_fractional_rank", &fractional_rank, py::arg("values"), py::arg("sets"), py::arg("count"),
             py::arg("ranks"), py::arg("workspace"), py::arg("bytes"), py::arg("device"), py::arg("stream"),
             py::call_guard<py::gil_scoped_release>(),
             "Rank float32 or float64 values (sets, count) within their sets on a device and a stream, which is not "
             "waited for: 1 for the smallest, ties sharing their mean rank, NaN for NaN; into ranks (sets, count), "
             "contiguous float64.");
}

}  // namespace bgs
