// The hybrid loss for the instruction set BGS_ISA; each of the files that include this is compiled for one.
#include <atomic>
#include <cstdint>
#include <exception>

#include "cpu/hybrid_loss.h"
#include "cpu/large_sets.h"
#include "cpu/parallel.h"
#include "cpu/small_sets.h"

namespace bgs::cpu::BGS_ISA {

// Threads cost more than they bring below this number of operations.
constexpr double kWorthThreads = 2e5;

inline bool is_small(const HybridLoss& given) {
  return given.rows <= given.small_rows && given.rows <= SmallSet::kMostRows;
}

inline void set_loss(const HybridLoss& given, std::int64_t set, int threads) {
  if (is_small(given)) {
    SmallSet(given, set, threads).run();
  } else {
    LargeSet(given, set, threads).run();
  }
}

void hybrid_loss(const HybridLoss& given) {
  const double work = static_cast<double>(given.rows) * static_cast<double>(given.rows) *
                          static_cast<double>(given.columns + given.target_columns + 16) +
                      50.0 * static_cast<double>(given.triplet_count);
  const int threads = work * static_cast<double>(given.sets) < kWorthThreads ? 1 : given.threads;
  if (given.sets >= threads && is_small(given)) {
    // an exception must not leave a thread
    std::exception_ptr error;
    std::atomic_flag taken = ATOMIC_FLAG_INIT;
    parallel_for(given.sets, threads, [&](std::int64_t set, int) {
      try {
        set_loss(given, set, 1);
      } catch (...) {
        if (!taken.test_and_set()) error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  } else {
    for (std::int64_t set = 0; set < given.sets; ++set) set_loss(given, set, threads);
  }
}

}  // namespace bgs::cpu::BGS_ISA
