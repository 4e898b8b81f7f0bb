// Loops over threads. What is computed for an index must not depend on the thread that does it.
#pragma once

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
// cache of a core the next one finds there.
template <class Body>
inline void parallel_for_parts(std::int64_t count, int threads, const Body& body) {
#if defined(_OPENMP)
  if (threads > 1 && count > 1) {
    const int used = static_cast<int>(count < threads ? count : threads);
#pragma omp parallel num_threads(used)
    {
      const int thread = omp_get_thread_num(), team = omp_get_num_threads();
      for (std::int64_t index = count * thread / team; index < count * (thread + 1) / team; ++index) body(index, thread);
    }
    return;
  }
#endif
  for (std::int64_t index = 0; index < count; ++index) body(index, 0);
}

}  // namespace bgs::cpu::BGS_ISA
