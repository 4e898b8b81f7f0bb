// Knight's algorithm: with the observations in the order of the first variable (and, among its ties, of the second) the
// discordant pairs are the inversions of the second. The sorts are those of ranks; the inversions are counted bit by bit
// from the highest: where numbers agree in all higher bits, a 1 before a 0 is an inversion, and a stable partition by the
// bit leaves two groups that agree in one bit more. A level reads and writes 4 bytes a number without a branch, which a
// merge sort of the same depth cannot. The floor is the reading of both variables, 16 bytes an observation.
#include "cpu/kendall.h"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu/parts.h"
#include "cpu/radix_sort.h"
#include "cpu/ranks.h"
#include "cpu/scratch.h"

namespace bgs {

namespace {

// Groups of up to this many numbers, which a second-level cache holds, are finished by one thread.
constexpr std::int64_t kGroupOfOneThread = 1 << 16;

// A group of numbers that agree in all bits from `bits` on.
struct Group {
  std::int64_t begin, count;
  int bits;
};

// Partitions numbers by a bit, those with 0 first, into `out`; returns the inversions between the two.
// `zeros` and `ones` say where the next of each goes, `ones_before` how many ones came before these numbers.
std::int64_t partition(const std::uint32_t* numbers, std::int64_t count, int bit, std::uint32_t* zeros,
                       std::uint32_t* ones, std::int64_t ones_before) {
  std::int64_t inversions = 0;
  std::int64_t zero = 0, one = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    const std::uint32_t number = numbers[k];
    const std::int64_t set = number >> bit & 1;
    // which of the two stays is decided by which counter moves on
    (set ? ones + one : zeros + zero)[0] = number;
    inversions += (one + ones_before) & (set - 1);
    one += set;
    zero += 1 - set;
  }
  return inversions;
}

std::int64_t count_ones(const std::uint32_t* numbers, std::int64_t count, int bit) {
  std::int64_t ones = 0;
  for (std::int64_t k = 0; k < count; ++k) ones += numbers[k] >> bit & 1;
  return ones;
}

// Counts the inversions of a group with one thread. What the group held is lost.
std::int64_t inversions_of_group(std::uint32_t* numbers, std::uint32_t* spare, std::int64_t count, int bits) {
  if (count < 2 || bits == 0) return 0;
  const std::int64_t zeros = count - count_ones(numbers, count, bits - 1);
  std::int64_t found = 0;
  if (zeros != 0 && zeros != count) {
    found = partition(numbers, count, bits - 1, spare, spare + zeros, 0);
    std::swap(numbers, spare);
  }
  return found + inversions_of_group(numbers, spare, zeros, bits - 1) +
         inversions_of_group(numbers + zeros, spare + zeros, count - zeros, bits - 1);
}

// Partitions a large group with all threads, in place; returns its inversions and how many zeros it has.
std::int64_t split(std::uint32_t* numbers, std::uint32_t* spare, std::int64_t count, int bit, int threads,
                   std::int64_t& zeros) {
  const Parts parts(count, threads);
  std::vector<std::int64_t> ones(static_cast<std::size_t>(parts.number));
#pragma omp parallel for num_threads(parts.number) schedule(static, 1)
  for (int part = 0; part < parts.number; ++part) {
    const std::int64_t begin = parts.begin(part);
    ones[static_cast<std::size_t>(part)] = count_ones(numbers + begin, parts.end(part) - begin, bit);
  }
  std::int64_t total = 0;
  for (std::int64_t& each : ones) {  // becomes how many there are before the part
    const std::int64_t of_part = each;
    each = total;
    total += of_part;
  }
  zeros = count - total;
  if (total == 0 || zeros == 0) return 0;
  std::int64_t found = 0;
#pragma omp parallel for num_threads(parts.number) schedule(static, 1) reduction(+ : found)
  for (int part = 0; part < parts.number; ++part) {
    const std::int64_t begin = parts.begin(part), before = ones[static_cast<std::size_t>(part)];
    found += partition(numbers + begin, parts.end(part) - begin, bit, spare + begin - before, spare + zeros + before,
                       before);
  }
#pragma omp parallel for num_threads(parts.number) schedule(static, 1)
  for (int part = 0; part < parts.number; ++part) {
    const std::int64_t begin = parts.begin(part);
    std::memcpy(numbers + begin, spare + begin, sizeof(*spare) * static_cast<std::size_t>(parts.end(part) - begin));
  }
  return found;
}

// Counts the pairs i < j with numbers[i] > numbers[j], all below 2^bits. What `numbers` held is lost.
std::int64_t count_inversions(std::uint32_t* numbers, std::int64_t count, int bits, int threads) {
  const Scratch<std::uint32_t> spare(count);
  std::int64_t found = 0;
  std::vector<Group> large{{0, count, bits}}, small;
  while (!large.empty()) {
    const Group group = large.back();
    large.pop_back();
    if (group.bits == 0 || group.count < 2) continue;
    if (group.count <= kGroupOfOneThread) {
      small.push_back(group);
      continue;
    }
    std::int64_t zeros = 0;
    found += split(numbers + group.begin, spare.data() + group.begin, group.count, group.bits - 1, threads, zeros);
    large.push_back({group.begin, zeros, group.bits - 1});
    large.push_back({group.begin + zeros, group.count - zeros, group.bits - 1});
  }
  const std::int64_t groups = static_cast<std::int64_t>(small.size());
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : found)
  for (std::int64_t each = 0; each < groups; ++each) {
    const Group& group = small[static_cast<std::size_t>(each)];
    found += inversions_of_group(numbers + group.begin, spare.data() + group.begin, group.count, group.bits);
  }
  return found;
}

// Counts the pairs of equal words among sorted ones.
std::int64_t equal_pairs(const std::uint64_t* words, std::int64_t count) {
  std::int64_t pairs = 0, equal = 0;
  for (std::int64_t k = 1; k < count; ++k) {
    equal = words[k] == words[k - 1] ? equal + 1 : 0;
    pairs += equal;
  }
  return pairs;
}

}  // namespace

double Concordance::tau_a() const {
  return static_cast<double>(concordant() - discordant) / static_cast<double>(pairs);
}

double Concordance::tau_b() const {
  return static_cast<double>(concordant() - discordant) / std::sqrt(static_cast<double>(pairs - tied_first)) /
         std::sqrt(static_cast<double>(pairs - tied_second));
}

template <typename T>
Concordance concordance(const T* first, const T* second, std::int64_t count, int threads) {
  Concordance found;
  if (count < 2) return found;
  found.pairs = count % 2 == 0 ? count / 2 * (count - 1) : (count - 1) / 2 * count;
  const int bits = bit_length(static_cast<std::uint64_t>(count - 1));
  const Scratch<std::uint64_t> words(count);
  {
    const Scratch<std::uint32_t> smaller(count);
    found.tied_first = count_smaller(first, count, smaller.data(), threads);
    // in the order of the second variable; a stable sort by the first then leaves its ties in that order
    found.tied_second = order_beside(second, smaller.data(), count, bits, words.data(), threads);
  }
  {
    const Scratch<std::uint64_t> spare(count);
    radix_sort(words.data(), spare.data(), count, bits, bits, threads);
  }
  found.tied_both = equal_pairs(words.data(), count);
  const Scratch<std::uint32_t> numbers(count);
  const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
  const Parts parts(count, threads);
#pragma omp parallel for num_threads(parts.number) schedule(static, 1)
  for (int part = 0; part < parts.number; ++part) {
    for (std::int64_t k = parts.begin(part); k < parts.end(part); ++k) {
      numbers[k] = static_cast<std::uint32_t>(words[k] & mask);
    }
  }
  found.discordant = count_inversions(numbers.data(), count, bits, threads);
  return found;
}

template Concordance concordance(const float*, const float*, std::int64_t, int);
template Concordance concordance(const double*, const double*, std::int64_t, int);

}  // namespace bgs
