// Ranks by CUB's radix sort: keys, sort, and the ranks of what was sorted. The keys of float64 leave no room for the
// number of the set, so a second, stable sort by that follows the first.
#include "cuda/ranks.h"

#include <cuda_runtime.h>

#include <cub/device/device_radix_sort.cuh>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/device.h"
#include "cuda/ranks_keys.cuh"

namespace bgs::cuda {

namespace {

constexpr int kThreadsOfRanks = 256;

struct Buffers {
  std::uint64_t* keys[2];
  std::uint32_t* order[2];  // where in (sets, count) a key came from
  void* temporary;
  std::size_t temporary_bytes;
  std::size_t bytes;
};

std::size_t whole_lines(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

int bits_of(std::int64_t sets) {
  int bits = 0;
  while (sets - 1 >> bits != 0) ++bits;
  return bits;
}

// Sorts from the first buffers of `from` into those of `to`, or only counts the bytes that takes.
void sort(void* temporary, std::size_t& bytes, const Buffers& buffers, int order_from, std::uint32_t count, int bits,
          cudaStream_t stream, const std::string& what) {
  check(cub::DeviceRadixSort::SortPairs(temporary, bytes, buffers.keys[0], buffers.keys[1], buffers.order[order_from],
                                        buffers.order[1 - order_from], count, 0, bits, stream),
        what);
}

Buffers buffers_in(void* workspace, std::int64_t all, const std::string& what) {
  if (all > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("cuda_fractional_rank: expected fewer than 2^32 numbers, got " + std::to_string(all));
  }
  Buffers buffers{};
  const std::size_t keys = whole_lines(all * sizeof(std::uint64_t)), order = whole_lines(all * sizeof(std::uint32_t));
  sort(nullptr, buffers.temporary_bytes, buffers, 0, static_cast<std::uint32_t>(all), 64, nullptr, what);
  buffers.bytes = 2 * keys + 2 * order + whole_lines(buffers.temporary_bytes);
  if (workspace == nullptr) return buffers;
  char* next = static_cast<char*>(workspace);
  for (auto& each : buffers.keys) {
    each = reinterpret_cast<std::uint64_t*>(next);
    next += keys;
  }
  for (auto& each : buffers.order) {
    each = reinterpret_cast<std::uint32_t*>(next);
    next += order;
  }
  buffers.temporary = next;
  return buffers;
}

__device__ std::int64_t place_of_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * kThreadsOfRanks + threadIdx.x;
}

__device__ std::uint64_t key_at(const FractionalRank& call, std::int64_t place) {
  const std::int64_t set = place / call.count;
  const std::int64_t at = set * call.values.stride[0] + place % call.count * call.values.stride[1];
  return call.values.dtype == DType::kFloat32 ? sort_key_in_set(static_cast<const float*>(call.values.data)[at], set)
                                              : sort_key_in_set(static_cast<const double*>(call.values.data)[at], set);
}

__global__ void make_keys_kernel(FractionalRank call, std::uint64_t* keys, std::uint32_t* order) {
  const std::int64_t place = place_of_thread();
  if (place >= call.sets * call.count) return;
  keys[place] = key_at(call, place);
  order[place] = static_cast<std::uint32_t>(place);
}

// Keys for the second sort of float64: the numbers of sets.
__global__ void make_set_keys_kernel(FractionalRank call, std::uint64_t* keys, const std::uint32_t* order) {
  const std::int64_t place = place_of_thread();
  if (place < call.sets * call.count) keys[place] = order[place] / call.count;
}

// The keys of numbers in a given order.
__global__ void gather_keys_kernel(FractionalRank call, std::uint64_t* keys, const std::uint32_t* order) {
  const std::int64_t place = place_of_thread();
  if (place < call.sets * call.count) keys[place] = key_at(call, order[place]);
}

__global__ void write_ranks_kernel(FractionalRank call, const std::uint64_t* keys, const std::uint32_t* order) {
  const std::int64_t place = place_of_thread();
  if (place >= call.sets * call.count) return;
  const std::int64_t first = place / call.count * call.count;
  call.ranks[order[place]] = is_key_of_nan(keys[place], call.values.dtype)
                                 ? same_bits<double>(std::uint64_t{0x7ff8000000000000})
                                 : rank_at(keys, place, first, first + call.count);
}

}  // namespace

std::size_t fractional_rank_workspace(std::int64_t sets, std::int64_t count, int device) {
  const OnDevice on_device(device);
  return buffers_in(nullptr, sets * count, "asking how much memory it takes to sort").bytes;
}

void fractional_rank(const FractionalRank& call, void* workspace, std::size_t bytes, int device,
                     std::uintptr_t stream) {
  const std::int64_t all = call.sets * call.count;
  if (all == 0) return;
  if (call.values.dtype != DType::kFloat32 && call.values.dtype != DType::kFloat64) {
    throw std::invalid_argument("cuda_fractional_rank: expected float32 or float64");
  }
  const OnDevice on_device(device);
  const std::string what = "ranking " + std::to_string(call.sets) + " x " + std::to_string(call.count) +
                           " numbers on device " + std::to_string(device);
  Buffers buffers = buffers_in(workspace, all, what);
  if (bytes < buffers.bytes) {
    throw std::invalid_argument("cuda_fractional_rank: expected a workspace of at least " +
                                std::to_string(buffers.bytes) + " bytes, got " + std::to_string(bytes));
  }
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  const auto count = static_cast<std::uint32_t>(all);
  const auto blocks = static_cast<unsigned>((all + kThreadsOfRanks - 1) / kThreadsOfRanks);
  const bool is_float = call.values.dtype == DType::kFloat32;
  const auto [keys, other_keys] = buffers.keys;
  const auto [order, other_order] = buffers.order;
  make_keys_kernel<<<blocks, kThreadsOfRanks, 0, on>>>(call, keys, order);
  check(cudaGetLastError(), what);
  const int bits = is_float ? 32 + bits_of(call.sets) : 64;
  sort(buffers.temporary, buffers.temporary_bytes, buffers, 0, count, bits, on, what);
  if (is_float || call.sets == 1) {
    write_ranks_kernel<<<blocks, kThreadsOfRanks, 0, on>>>(call, other_keys, other_order);
    return check(cudaGetLastError(), what);
  }
  make_set_keys_kernel<<<blocks, kThreadsOfRanks, 0, on>>>(call, keys, other_order);
  check(cudaGetLastError(), what);
  sort(buffers.temporary, buffers.temporary_bytes, buffers, 1, count, bits_of(call.sets), on, what);
  gather_keys_kernel<<<blocks, kThreadsOfRanks, 0, on>>>(call, keys, order);
  check(cudaGetLastError(), what);
  write_ranks_kernel<<<blocks, kThreadsOfRanks, 0, on>>>(call, keys, order);
  check(cudaGetLastError(), what);
}

}  // namespace bgs::cuda
