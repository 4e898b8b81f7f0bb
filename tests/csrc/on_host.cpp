// The kernel of small sets on a CPU, bound under the names that the compiled module binds the launch to. The device is
// the number of blocks, the stream says whether threads and blocks run in reverse order.
#include "cuda_on_host.h"

#include <cstring>
#include <memory>
#include <vector>

#include "cuda/bind_hybrid_small.h"
#include "cuda/hybrid_small_kernel.cuh"

namespace {

void run_hybrid_small(const bgs::cuda::HybridSmall& call, void* workspace, int blocks, std::uintptr_t reversed) {
  const bgs::cuda::HybridSmallPlan plan = bgs::cuda::plan_hybrid_small(call.sizes, workspace);
  std::vector<std::unique_ptr<bgs::cuda::Shared>> shared;
  for (int block = 0; block < blocks; ++block) shared.emplace_back(new bgs::cuda::Shared);
  const auto spoil = [&] {  // nothing may be left to chance, or be carried over a barrier of the grid
    for (auto& each : shared) std::memset(static_cast<void*>(each.get()), 0xff, sizeof(bgs::cuda::Shared));
  };
  const auto body = [&] {
    bgs::cuda::hybrid_small<bgs::cuda::kMostScale>(
        call, plan, *shared[blockIdx.x],
        [](int site = __builtin_LINE()) { on_host::grid.wait(on_host::Wait::kGrid, site); });
  };
  on_host::grid.run(blocks, bgs::cuda::kThreads, reversed != 0, body, spoil);
}

}  // namespace

PYBIND11_MODULE(_on_host, module) { bgs::cuda::bind_hybrid_small(module, run_hybrid_small); }
