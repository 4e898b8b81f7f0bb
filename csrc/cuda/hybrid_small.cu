// Launches the kernel of small sets.
#include "cuda/hybrid_small.h"

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "cuda/device.h"
#include "cuda/hybrid_small_kernel.cuh"

namespace bgs::cuda {

namespace {

// Tiles up to the second scale leave registers for two blocks on a multiprocessor: while one waits for memory the other
// computes. The largest tiles have enough to compute themselves, and need the registers.
constexpr int kNarrow = 2;
constexpr int kWide = kMostScale;

template <int kLargestScale>
__global__ void __launch_bounds__(kThreads, kLargestScale == kNarrow ? 2 : 1)
    hybrid_small_kernel(const __grid_constant__ HybridSmall call, const __grid_constant__ HybridSmallPlan plan) {
  __shared__ Shared shared;
  hybrid_small<kLargestScale>(call, plan, shared, [] { cooperative_groups::this_grid().sync(); });
}

}  // namespace

void launch_hybrid_small(const HybridSmall& call, void* workspace, int device, std::uintptr_t stream) {
  const OnDevice on_device(device);
  const std::string what = "launching the hybrid loss of " + std::to_string(call.sizes.sets) + " sets of " +
                           std::to_string(call.sizes.rows) + " rows on device " + std::to_string(device);
  HybridSmallPlan plan = plan_hybrid_small(call.sizes, workspace);
  const void* kernel = std::max(plan.pair_scale, plan.gradient_scale) <= kNarrow
                           ? reinterpret_cast<const void*>(&hybrid_small_kernel<kNarrow>)
                           : reinterpret_cast<const void*>(&hybrid_small_kernel<kWide>);
  const std::int64_t resident = resident_blocks(kernel, kThreads, device, what);
  const auto blocks = static_cast<unsigned>(std::min(resident, useful_blocks(call.sizes, plan)));
  HybridSmall copy = call;
  void* arguments[] = {&copy, &plan};
  check(cudaLaunchCooperativeKernel(kernel, dim3(blocks), dim3(kThreads), arguments, 0,
                                    reinterpret_cast<cudaStream_t>(stream)),
        what);
}

}  // namespace bgs::cuda
