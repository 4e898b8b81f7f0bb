// Large pieces of memory, used again by later calls: the system hands out new ones page by page, cleared, which would
// cost a step of training more than all that is not a product of matrices.
#pragma once

#include <cstddef>

namespace bgs::cpu {

// Give `bytes` of memory that starts on a cache line; its contents are anything. Throws std::bad_alloc. From any thread.
void* acquire(std::size_t bytes);

// Take it back, with the number of bytes that was asked for.
void release(void* memory, std::size_t bytes) noexcept;

// Give what is held for later calls back to the system.
void release_held();

// How many bytes are held for later calls, at most kMostHeld.
std::size_t held_bytes();

// Fill all memory that is given from now on with NaN, for tests.
void poison(bool wanted);

constexpr std::size_t kMostHeld = std::size_t{128} << 20;

}  // namespace bgs::cpu
