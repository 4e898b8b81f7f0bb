// What every launch needs: errors with CUDA's own names, the device of the tensors, and how many blocks it can hold.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

namespace bgs::cuda {

// Throws std::runtime_error "cudaErrorName (what it means) while <what>" unless all is well.
void check(cudaError_t error, const std::string& what);

// Makes a device the current one for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Gives how many blocks of a kernel a device can run at the same time: asked once, and remembered, so that a launch
// under graph capture asks nothing. The device must be the current one.
std::int64_t resident_blocks(const void* kernel, int threads, int device, const std::string& what);

}  // namespace bgs::cuda
