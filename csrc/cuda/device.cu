// The errors of CUDA, the current device, and what devices hold.
#include "cuda/device.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace bgs::cuda {

void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the next call shall not report this one
  throw std::runtime_error(std::string(cudaGetErrorName(error)) + " (" + cudaGetErrorString(error) + ") while " + what);
}

OnDevice::OnDevice(int device) {
  const std::string what = "choosing device " + std::to_string(device);
  check(cudaGetDevice(&before_), what);
  if (before_ == device) return;
  check(cudaSetDevice(device), what);
  changed_ = true;
}

OnDevice::~OnDevice() {
  if (changed_) cudaSetDevice(before_);
}

std::int64_t resident_blocks(const void* kernel, int threads, int device, const std::string& what) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, std::int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({kernel, device});
  if (found != known.end()) return found->second;
  int cooperative = 0, processors = 0, blocks = 0;
  check(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device), what);
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), what);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0), what);
  if (cooperative == 0 || blocks == 0) check(cudaErrorCooperativeLaunchTooLarge, what);
  return known[{kernel, device}] = static_cast<std::int64_t>(blocks) * processors;
}

}  // namespace bgs::cuda
