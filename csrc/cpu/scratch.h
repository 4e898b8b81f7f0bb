// Memory for what a kernel works in, on huge pages where the system gives them on request: it is written at random, and
// 4 KiB pages of many megabytes outnumber what a processor keeps translated (ranks of 8 million values took 1.3 times as
// long on them, and touching the fresh pages alone milliseconds).
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bgs {

constexpr std::size_t kHugePage = std::size_t{1} << 21;

// Asks for huge pages where memory that was not touched yet spans some. It is a wish: refused, all works as well.
inline void wish_huge_pages(void* data, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(data);
  static_cast<void>(bytes);
#endif
}

// An array of `count` numbers that are not initialised.
template <typename T>
class Scratch {
 public:
  explicit Scratch(std::int64_t count) {
    const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(count);
    // a large array begins with a huge page
    alignment_ = bytes >= kHugePage ? kHugePage : kSmallAlignment;
    data_ = static_cast<T*>(::operator new(bytes, std::align_val_t{alignment_}));
    wish_huge_pages(data_, bytes);
  }

  Scratch(Scratch&& other) noexcept : data_(std::exchange(other.data_, nullptr)), alignment_(other.alignment_) {}
  Scratch& operator=(Scratch&&) = delete;
  ~Scratch() { ::operator delete(data_, std::align_val_t{alignment_}); }

  T* data() const { return data_; }
  T& operator[](std::int64_t place) const { return data_[place]; }

 private:
  static constexpr std::size_t kSmallAlignment = 64;  // a cache line

  T* data_;
  std::size_t alignment_;
};

}  // namespace bgs
