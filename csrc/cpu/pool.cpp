#include "cpu/pool.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bgs::cpu {

namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPooled = std::size_t{64} << 10;  // malloc keeps smaller ones itself

std::size_t rounded(std::size_t bytes) {
  // huge pages also spare misses in the table of pages
  const std::size_t unit = bytes >= 2 * kHugePage ? kHugePage : bytes >= kPooled ? kPooled : kLine;
  return (bytes + unit - 1) / unit * unit;
}

struct Pool {
  std::mutex mutex;
  std::multimap<std::size_t, void*> blocks;  // by size
  std::size_t held = 0;
};

Pool& pool() {
  static Pool* const one = new Pool;  // never destroyed: threads may outlive the end of main
  return *one;
}

std::atomic<bool> poisoned{false};

void* take(std::size_t bytes) {
  if (bytes >= kPooled) {
    Pool& here = pool();
    const std::lock_guard<std::mutex> lock(here.mutex);
    const auto found = here.blocks.find(bytes);
    if (found != here.blocks.end()) {
      void* memory = found->second;
      here.blocks.erase(found);
      here.held -= bytes;
      return memory;
    }
  }
  const bool huge = bytes >= 2 * kHugePage;
  void* memory = std::aligned_alloc(huge ? kHugePage : kLine, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  if (huge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace

void* acquire(std::size_t wanted) {
  const std::size_t bytes = rounded(wanted);
  void* const memory = take(bytes);
  if (poisoned) std::memset(memory, 0xff, bytes);
  return memory;
}

void poison(bool wanted) { poisoned = wanted; }

void release(void* memory, std::size_t wanted) noexcept {
  const std::size_t bytes = rounded(wanted);
  if (memory == nullptr) return;
  if (bytes >= kPooled && bytes <= kMostHeld) {
    try {
      Pool& here = pool();
      const std::lock_guard<std::mutex> lock(here.mutex);
      // the largest go first: they are the likeliest to be of sets that do not come again
      while (here.held + bytes > kMostHeld) {
        const auto largest = std::prev(here.blocks.end());
        std::free(largest->second);
        here.held -= largest->first;
        here.blocks.erase(largest);
      }
      here.blocks.emplace(bytes, memory);
      here.held += bytes;
      return;
    } catch (...) {  // no memory to remember it by
    }
  }
  std::free(memory);
}

void release_held() {
  Pool& here = pool();
  const std::lock_guard<std::mutex> lock(here.mutex);
  for (const auto& block : here.blocks) std::free(block.second);
  here.blocks.clear();
  here.held = 0;
}

std::size_t held_bytes() {
  Pool& here = pool();
  const std::lock_guard<std::mutex> lock(here.mutex);
  return here.held;
}

}  // namespace bgs::cpu
