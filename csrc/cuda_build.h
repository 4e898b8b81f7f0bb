// What the CUDA part of the module was built with; compiled only where there is a CUDA compiler.
#pragma once

#include <string>

namespace bgs {

// The CUDA compiler's version, "nvcc 13.0.88".
std::string cuda_compiler();

}  // namespace bgs
