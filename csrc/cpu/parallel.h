// Loops over threads. What is computed for an index must not depend on the thread that does it.
#pragma once

#include <atomic>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace bgs::cpu::BGS_ISA {

// Call body(index, thread) for every index below count; thread is below `threads`.
template <class Body>
inline void parallel_for(std::int64_t count, int threads, const Body& body) {
#if defined(_OPENMP)
  if (threads > 1 && count > 1) {
    const int used = static_cast<int>(count < threads ? count : threads);
#pragma omp parallel num_threads(used)
    {
      const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t index = 0; index < count; ++index) body(index, thread);
    }
    return;
  }
#endif
  for (std::int64_t index = 0; index < count; ++index) body(index, 0);
}

// The same with consecutive indices for each thread, the same ones in every loop of `count`: what one loop leaves in the
// cache of a core the next one finds there. A thread that is through goes on with what others have left.
template <class Body>
inline void parallel_for_parts(std::int64_t count, int threads, const Body& body) {
#if defined(_OPENMP)
  constexpr int kMostParts = 128;
  struct alignas(64) Next {
    std::atomic<std::int64_t> index;
  };
  if (threads > 1 && count > 1) {
    const std::int64_t most = threads < kMostParts ? threads : kMostParts;
    const int parts = static_cast<int>(count < most ? count : most);
    Next next[kMostParts];
    const auto begin_of = [&](int part) { return count * part / parts; };
    for (int part = 0; part < parts; ++part) next[part].index.store(begin_of(part), std::memory_order_relaxed);
#pragma omp parallel num_threads(parts)
    {
      const int thread = omp_get_thread_num();
      for (int each = 0; each < parts; ++each) {
        const int part = (thread + each) % parts;
        const std::int64_t end = begin_of(part + 1);
        std::int64_t index;
        while ((index = next[part].index.fetch_add(1, std::memory_order_relaxed)) < end) body(index, thread);
      }
    }
    return;
  }
#endif
  for (std::int64_t index = 0; index < count; ++index) body(index, 0);
}

}  // namespace bgs::cpu::BGS_ISA
