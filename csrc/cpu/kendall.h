// How many pairs of observations two variables order alike: what Kendall's tau is made of.
#pragma once

#include <cstdint>

namespace bgs {

// Counts of pairs of observations.
struct Concordance {
  std::int64_t pairs = 0;         // all
  std::int64_t tied_first = 0;    // equal in the first variable
  std::int64_t tied_second = 0;   // equal in the second
  std::int64_t tied_both = 0;     // equal in both
  std::int64_t discordant = 0;    // ordered one way by the first and the other way by the second

  std::int64_t concordant() const { return pairs - tied_first - tied_second + tied_both - discordant; }
  double tau_a() const;
  double tau_b() const;
};

// Counts them for at most 2^32 observations without NaN, by sorting (Knight 1966).
template <typename T>
Concordance concordance(const T* first, const T* second, std::int64_t count, int threads);

}  // namespace bgs
