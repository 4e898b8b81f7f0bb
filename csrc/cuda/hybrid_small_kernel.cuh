// The kernel of small sets: its phases in order, with a barrier of the whole grid between two of them. Plain C++ but
// for the words that nvcc wants, so that the tests run it on a CPU.
//
// What it cannot be faster than, for the published data (N = 250, D = 128, T = 24,096, float32, one set) on an H100: it
// reads 0.13 MB of rows, 0.25 MB of targets and 0.58 MB of triplets, writes 0.13 MB, and needs 24 MFLOP (8 for the
// distances above the diagonal, 16 for the gradient): 0.3 us of 3.35 TB/s and 0.4 us of 67 TFLOP/s. Its workspace of
// 1.2 MB stays in the cache. Four barriers at about 1.5 us each and five times a few trips to that cache at 0.3 us each
// are what it takes, some 10 us: an estimate, not yet measured. Blocks share the work of a phase item by item, whatever
// the number of blocks, and all sums have an order of their own: results have the same bits in every run.
#pragma once

#include "cuda/hybrid_small_finish.cuh"
#include "cuda/hybrid_small_gradient.cuh"
#include "cuda/hybrid_small_pairs.cuh"
#include "cuda/hybrid_small_rows.cuh"
#include "cuda/hybrid_small_triplets.cuh"

namespace bgs::cuda {

// `sync_grid` waits until every block is there and can see what the others wrote.
template <int kLargestScale, typename SyncGrid>
__device__ inline void hybrid_small(const HybridSmall& call, const HybridSmallPlan& plan, Shared& shared,
                                    SyncGrid&& sync_grid) {
  const HybridSmallSizes& sizes = call.sizes;
  prepare_rows(call, plan);
  if (sizes.gradient && sizes.triplets > 0) {
    clear_pair_sums(call, plan);
    if (sizes.triplet_weights) sum_triplet_weights(call, plan, shared);
  }
  sync_grid();
  compare_pairs<kLargestScale>(call, plan, shared);
  sync_grid();
  if (sizes.triplets > 0) {
    judge_triplets(call, plan, shared);
    sync_grid();
  }
  finish_sets<kLargestScale>(call, plan, shared);
  if (!sizes.gradient) return;
  sync_grid();
  differentiate<kLargestScale>(call, plan, shared);
}

}  // namespace bgs::cuda
