// Device code on a CPU, bound under the names that the compiled module binds the launches to. The device is the number
// of blocks, the stream says whether threads and blocks run in reverse order.
#include "cuda_on_host.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/bind_hybrid_small.h"
#include "cuda/hybrid_small_kernel.cuh"
#include "cuda/ranks_keys.cuh"

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

// Ranks as csrc/cuda/ranks.cu does, with the C++ library in place of CUB.
template <typename T>
void rank(const T* values, std::int64_t sets, std::int64_t count, bgs::DType dtype, double* ranks) {
  std::vector<std::int64_t> order(sets * count);
  for (std::int64_t place = 0; place < sets * count; ++place) order[place] = place;
  const auto key = [&](std::int64_t place) { return bgs::cuda::sort_key_in_set(values[place], place / count); };
  std::stable_sort(order.begin(), order.end(), [&](auto one, auto two) { return key(one) < key(two); });
  if (dtype == bgs::DType::kFloat64) {
    std::stable_sort(order.begin(), order.end(), [&](auto one, auto two) { return one / count < two / count; });
  }
  std::vector<std::uint64_t> keys;
  for (const std::int64_t place : order) keys.push_back(key(place));
  for (std::int64_t place = 0; place < sets * count; ++place) {
    const std::int64_t first = place / count * count;
    ranks[order[place]] = bgs::cuda::is_key_of_nan(keys[place], dtype)
                              ? NAN
                              : bgs::cuda::rank_at(keys.data(), place, first, first + count);
  }
}

void fractional_rank(bgs::Tensor values, std::int64_t sets, std::int64_t count, bgs::Tensor ranks) {
  double* out = static_cast<double*>(const_cast<void*>(ranks.data));
  if (values.dtype == bgs::DType::kFloat32) {
    rank(static_cast<const float*>(values.data), sets, count, values.dtype, out);
  } else {
    rank(static_cast<const double*>(values.data), sets, count, values.dtype, out);
  }
}

}  // namespace

PYBIND11_MODULE(_on_host, module) {
  bgs::cuda::bind_hybrid_small(module, run_hybrid_small);
  module.def("fractional_rank", &fractional_rank);
}
