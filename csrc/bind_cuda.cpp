// Binds the CUDA kernels.
#include "bind.h"

namespace bgs {

void bind_cuda(pybind11::module_&) {}

}  // namespace bgs
