// Runs device code on a CPU, compiled by a C++ compiler: every thread of every block is a fiber in one thread of the
// system, so that runs are reproducible and sanitizers see every access. A fiber runs until it waits for its warp, its
// block or the grid. Fibers run in their order or in the reverse of it; code that lacks a barrier gives other results.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define __device__
#define __noinline__

struct OnHostIndex {
  unsigned x = 0, y = 0, z = 0;
};

inline OnHostIndex threadIdx, blockIdx, blockDim, gridDim;

namespace on_host {

constexpr int kLanes = 32;
constexpr std::size_t kStack = 256 * 1024;

enum class Wait { kNothing, kWarp, kBlock, kGrid, kEnd };

struct Fiber {
  Wait wait = Wait::kNothing;
  int site = 0;  // the line that waits: all that wait together must wait at the same
  int turn = 0;  // of two slots for what lanes exchange: who is ahead leaves the last one to those who still read it
  bool started = false;
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[kStack]};
};

struct Slots {
  alignas(8) unsigned char values[2][kLanes][8];
};

class Grid {
 public:
  // Runs body() in every thread. `on_phase` is called before the first phase and after every barrier of the grid.
  void run(int blocks, int threads, bool reversed, const std::function<void()>& body,
           const std::function<void()>& on_phase) {
    threads_ = threads;
    body_ = &body;
    while (fibers_.size() < static_cast<std::size_t>(blocks) * threads) fibers_.emplace_back(new Fiber);
    slots_.resize(static_cast<std::size_t>(blocks) * threads / kLanes);
    for (int f = 0; f < blocks * threads; ++f) {
      fibers_[f]->wait = Wait::kNothing;
      fibers_[f]->started = false;
    }
    gridDim.x = blocks;
    blockDim.x = threads;
    bool ended = false;
    while (!ended) {
      on_phase();
      for (int b = 0; b < blocks; ++b) run_block(reversed ? blocks - 1 - b : b, reversed);
      ended = fibers_[0]->wait == Wait::kEnd;
      release(0, blocks * threads, ended ? Wait::kEnd : Wait::kGrid);
    }
  }

  void wait(Wait what, int site) {
    Fiber& fiber = *current_;
    fiber.wait = what;
    fiber.site = site;
    if (_setjmp(fiber.place) == 0) _longjmp(scheduler_, 1);
  }

  template <typename T>
  T exchange(T value, int with, int site) {
    static_assert(sizeof(T) <= 8, "lanes exchange up to eight bytes");
    Slots& slots = slots_[(blockIdx.x * threads_ + threadIdx.x) / kLanes];
    const int turn = current_->turn ^= 1;
    std::memcpy(slots.values[turn][threadIdx.x % kLanes], &value, sizeof(T));
    wait(Wait::kWarp, site);
    std::memcpy(&value, slots.values[turn][with], sizeof(T));
    return value;
  }

 private:
  // Lets the fibers go on that wait for one thing, if all of them do, and says whether they did.
  bool release(int first, int count, Wait what) {
    for (int f = first; f < first + count; ++f) {
      if (fibers_[f]->wait != what) return false;
      if (what != Wait::kEnd && fibers_[f]->site != fibers_[first]->site) {
        throw std::logic_error("threads wait at lines " + std::to_string(fibers_[f]->site) + " and " +
                               std::to_string(fibers_[first]->site));
      }
    }
    if (what != Wait::kEnd) {
      for (int f = first; f < first + count; ++f) fibers_[f]->wait = Wait::kNothing;
    }
    return true;
  }

  void run_block(int block, bool reversed) {
    const int first = block * threads_, warps = threads_ / kLanes;
    blockIdx.x = block;
    do {
      for (int w = 0; w < warps; ++w) {
        const int warp = first + (reversed ? warps - 1 - w : w) * kLanes;
        do {
          for (int l = 0; l < kLanes; ++l) resume(warp + (reversed ? kLanes - 1 - l : l), first);
        } while (release(warp, kLanes, Wait::kWarp));
      }
    } while (release(first, threads_, Wait::kBlock));
    const Wait what = fibers_[first]->wait;
    bool together = what == Wait::kGrid || what == Wait::kEnd;
    for (int f = first; f < first + threads_; ++f) together = together && fibers_[f]->wait == what;
    if (!together) throw std::logic_error("some threads of a block wait where the others never come");
  }

  void resume(int f, int first) {
    Fiber& fiber = *fibers_[f];
    if (fiber.wait != Wait::kNothing) return;
    current_ = &fiber;
    threadIdx.x = f - first;
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    fiber.turn = 0;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, &Grid::enter, 0);
    setcontext(&context);
  }

  static void enter();

  int threads_ = 0;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Slots> slots_;
  Fiber* current_ = nullptr;
  jmp_buf scheduler_;
};

inline Grid grid;

inline void Grid::enter() {
  (*grid.body_)();
  grid.wait(Wait::kEnd, 0);
}

}  // namespace on_host

inline void __syncthreads(int site = __builtin_LINE()) { on_host::grid.wait(on_host::Wait::kBlock, site); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask, int site = __builtin_LINE()) {
  return on_host::grid.exchange(value, static_cast<int>(threadIdx.x % on_host::kLanes) ^ mask, site);
}

inline unsigned long long atomicAdd(unsigned long long* sum, unsigned long long value) {
  const unsigned long long before = *sum;
  *sum = before + value;
  return before;
}
