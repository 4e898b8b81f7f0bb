// The Python module bgs_kernels._native: what it was built with, and the functions that each subject binds. Kernels take
// raw pointers, sizes and a stream, so no torch header is included here or anywhere in csrc.
#include <pybind11/pybind11.h>

#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "bind.h"
#include "cuda_build.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("Clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("GCC ") + __VERSION__;
#elif defined(_MSC_VER)
  return "MSVC " + std::to_string(_MSC_FULL_VER);
#else
  return "unknown";
#endif
}

// The C++ standard as its year, "17" for 201703.
std::string cxx_standard() {
#if defined(_MSVC_LANG)
  return std::to_string(_MSVC_LANG / 100 % 100);
#else
  return std::to_string(__cplusplus / 100 % 100);
#endif
}

// The date of the OpenMP specification that was compiled for, as yyyymm, or nothing without OpenMP.
std::optional<int> openmp() {
#if defined(_OPENMP)
  return _OPENMP;
#else
  return std::nullopt;
#endif
}

std::vector<std::string> cuda_architectures() {
  std::vector<std::string> names;
#if defined(BGS_CUDA_ARCHITECTURES)
  std::istringstream written(BGS_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(written, name, ',');) names.push_back(name);
#endif
  return names;
}

std::optional<std::string> cuda_compiler() {
#if defined(BGS_CUDA_ARCHITECTURES)
  return bgs::cuda_compiler();
#else
  return std::nullopt;
#endif
}

py::dict build_info() {
  py::list architectures;
  for (const std::string& name : cuda_architectures()) architectures.append(name);
  const auto or_none = [](const auto& value) -> py::object { return value ? py::cast(*value) : py::none(); };
  py::dict info;
  info["compiler"] = compiler();
  info["cxx_standard"] = cxx_standard();
  info["openmp"] = or_none(openmp());
  info["cuda_compiler"] = or_none(cuda_compiler());
  info["cuda_architectures"] = architectures;
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled kernels of bgs_kernels.";
  module.def("build_info", &build_info,
             "Say what the module was built with: compiler, cxx_standard, openmp (yyyymm or None), cuda_compiler (or "
             "None) and cuda_architectures.");
  bgs::bind_losses(module);
  bgs::bind_statistics(module);
#if defined(BGS_CUDA_ARCHITECTURES)
  bgs::bind_cuda(module);
#endif
}
