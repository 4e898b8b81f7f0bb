// How the hybrid loss of small sets is cut into tiles and chunks, and how its workspace is laid out.
#include <algorithm>

#include "cuda/hybrid_small.h"
#include "cuda/hybrid_small_shape.h"

namespace bgs::cuda {

namespace {

// Tiles are made as large as leaves this many: about as many as there are multiprocessors on an A100 (108) or an H100
// (132). Larger tiles load less for every product.
constexpr std::int64_t kEnoughTiles = 128;

// Every block adds up the sums of all chunks: more chunks than this would cost more than they spread.
constexpr std::int64_t kMostChunks = 4096;

constexpr std::int64_t ceil_div(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

constexpr std::int32_t multiple_of_four(std::int32_t count) { return (count + 3) / 4 * 4; }

template <typename CountTiles>
std::int32_t largest_scale(CountTiles&& count_tiles) {
  for (const std::int32_t scale : {4, 2}) {
    if (count_tiles(kSide * scale) >= kEnoughTiles) return scale;
  }
  return 1;
}

// Hands out parts of the workspace, or only counts them.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  void carve(T*& part, std::int64_t count) {
    part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += ceil_div(static_cast<std::int64_t>(sizeof(T)) * count, 256) * 256;
  }

  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace

HybridSmallPlan plan_hybrid_small(const HybridSmallSizes& sizes, void* workspace) {
  HybridSmallPlan plan{};
  const std::int64_t sets = sizes.sets, rows = sizes.rows, columns = sizes.columns;
  plan.pair_scale = largest_scale([&](std::int64_t side) {
    const std::int64_t blocks = ceil_div(rows, side);
    return sets * blocks * (blocks + 1) / 2;
  });
  plan.gradient_scale =
      largest_scale([&](std::int64_t side) { return sets * ceil_div(rows, side) * ceil_div(columns, side); });
  plan.blocks = static_cast<std::int32_t>(ceil_div(rows, kSide * plan.pair_scale));
  plan.tiles = plan.blocks * (plan.blocks + 1) / 2;
  plan.row_tiles = static_cast<std::int32_t>(ceil_div(rows, kSide * plan.gradient_scale));
  plan.column_tiles = static_cast<std::int32_t>(ceil_div(columns, kSide * plan.gradient_scale));
  plan.chunk = kThreads * std::max<std::int64_t>(1, ceil_div(sizes.triplets, kThreads * kMostChunks));
  plan.chunks = static_cast<std::int32_t>(ceil_div(sizes.triplets, plan.chunk));
  plan.pitch = multiple_of_four(sizes.columns);
  plan.target_pitch = multiple_of_four(sizes.target_columns);
  plan.pair_pitch = multiple_of_four(sizes.rows);

  Carver workspace_of(workspace);
  const bool target_rows = sizes.target_columns > 0;
  const std::int64_t pairs = sets * rows * plan.pair_pitch;
  workspace_of.carve(plan.units, sets * rows * plan.pitch);
  workspace_of.carve(plan.scales, sets * 2 * rows);
  workspace_of.carve(plan.origin, sets * plan.pitch);
  workspace_of.carve(plan.target_units, sets * rows * plan.target_pitch);
  workspace_of.carve(plan.target_scales, target_rows ? sets * 2 * rows : 0);
  workspace_of.carve(plan.pairs, pairs);
  workspace_of.carve(plan.targets, sizes.target ? pairs : 0);
  workspace_of.carve(plan.weights, sizes.target && sizes.weights ? pairs : 0);
  workspace_of.carve(plan.row_sums, sizes.gradient ? sets * 2 * plan.blocks * rows : 0);
  workspace_of.carve(plan.pair_sums, sizes.gradient && sizes.triplets > 0 ? sets * rows * rows : 0);
  workspace_of.carve(plan.moments, sizes.target ? sets * kMoments * plan.tiles : 0);
  workspace_of.carve(plan.triplet_sums, sets * 3 * plan.chunks);
  workspace_of.carve(plan.weight_sums, sizes.triplet_weights && sizes.gradient ? sets * plan.chunks : 0);
  plan.bytes = workspace_of.used();
  return plan;
}

std::int64_t useful_blocks(const HybridSmallSizes& sizes, const HybridSmallPlan& plan) {
  const std::int64_t all_rows = sizes.rows * (sizes.target_columns > 0 ? 2 : 1);
  std::int64_t most = std::max<std::int64_t>(1, ceil_div(all_rows, kWarps));
  most = std::max<std::int64_t>({most, plan.tiles, plan.chunks});
  if (sizes.gradient) most = std::max<std::int64_t>(most, plan.row_tiles * plan.column_tiles);
  return sizes.sets * most;
}

}  // namespace bgs::cuda
