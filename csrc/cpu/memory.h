// Arrays that live as long as a call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/pool.h"

namespace bgs::cpu::BGS_ISA {

// An uninitialised array of numbers that begins on a cache line; moves, but does not copy.
template <class Number>
class Array {
 public:
  Array() = default;
  explicit Array(std::int64_t count) {
    if (count <= 0) return;
    bytes_ = static_cast<std::size_t>(count) * sizeof(Number);
    data_ = static_cast<Number*>(acquire(bytes_));
  }
  Array(Array&& other) noexcept { *this = static_cast<Array&&>(other); }
  Array& operator=(Array&& other) noexcept {
    Number* const data = data_;
    const std::size_t bytes = bytes_;
    data_ = other.data_;
    bytes_ = other.bytes_;
    other.data_ = data;
    other.bytes_ = bytes;
    return *this;
  }
  ~Array() { release(data_, bytes_); }

  Number* get() const { return data_; }
  Number& operator[](std::int64_t index) const { return data_[index]; }

 private:
  Number* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace bgs::cpu::BGS_ISA
