// Vectors of the instruction set that a file is compiled for, and the elementary functions of the loss on them. All of
// it lies in the namespace of that instruction set: two builds of one inline function must never be taken for another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace bgs::cpu::BGS_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

// kWidth numbers, the truth values (0 or -1) and integers that go with them, and kHalf numbers of twice their precision.
constexpr int kHalf = kWidth / 2;
typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef float HalfFloats __attribute__((vector_size(4 * kHalf)));
typedef double Doubles __attribute__((vector_size(8 * kHalf)));

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// The first `count` numbers, up to a whole vector, and zeros.
inline Floats load_first(std::int64_t count, const float* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#else
  alignas(64) float lanes[kWidth] = {};
  std::memcpy(lanes, from, sizeof(float) * static_cast<std::size_t>(count));
  return load(lanes);
#endif
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

inline Floats all(float value) { return value - Floats{}; }

// 0, 1, 2, ...
inline Ints numbered() {
  Ints value;
  for (int each = 0; each < kWidth; ++each) value[each] = each;
  return value;
}

// kHalf numbers. Left to convert vectors itself, GCC 12 takes three instructions instead of one.
inline Doubles load_wide(const float* from) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_cvtps_pd(_mm256_loadu_ps(from));
#elif defined(__AVX2__)
  return (Doubles)_mm256_cvtps_pd(_mm_loadu_ps(from));
#else
  HalfFloats value;
  std::memcpy(&value, from, sizeof value);
  return __builtin_convertvector(value, Doubles);
#endif
}

// The lower (0) or the upper half (1) of a vector in twice the precision.
inline Doubles widened(Floats value, int half) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_cvtps_pd(half == 0 ? _mm512_castps512_ps256((__m512)value)
                                            : _mm512_extractf32x8_ps((__m512)value, 1));
#elif defined(__AVX2__)
  return (Doubles)_mm256_cvtps_pd(half == 0 ? _mm256_castps256_ps128((__m256)value)
                                            : _mm256_extractf128_ps((__m256)value, 1));
#else
  float lanes[kWidth];
  std::memcpy(lanes, &value, sizeof lanes);
  return load_wide(lanes + half * kHalf);
#endif
}

// kWidth bytes as integers.
inline Ints load_bytes(const std::uint8_t* from) {
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  Ints value;
  for (int each = 0; each < kWidth; ++each) value[each] = from[each];
  return value;
#endif
}

// The first `count` bytes, up to kWidth, and zeros, as integers.
inline Ints load_first_bytes(std::int64_t count, const std::uint8_t* from) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return (Ints)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1), from));
#else
  std::uint8_t lanes[kWidth] = {};
  std::memcpy(lanes, from, static_cast<std::size_t>(count));
  return load_bytes(lanes);
#endif
}

template <int kCount, class Number, class Vector>
inline Number sum_of(Vector value) {
  Number lanes[kCount];
  std::memcpy(lanes, &value, sizeof lanes);
  for (int step = kCount / 2; step > 0; step /= 2) {
    for (int each = 0; each < step; ++each) lanes[each] += lanes[each + step];
  }
  return lanes[0];
}

inline double sum(Doubles value) { return sum_of<kHalf, double>(value); }

inline float sum(Floats value) { return sum_of<kWidth, float>(value); }

// The smaller of two numbers; NaN if `one` is.
inline Floats smaller(Floats one, Floats two) { return two < one ? two : one; }

inline Floats magnitude(Floats value) { return value < 0 ? -value : value; }

inline float largest(Floats value) {
  float found = value[0];
  for (int each = 1; each < kWidth; ++each) found = value[each] > found ? value[each] : found;
  return found;
}

// exp(x) for x <= 0 to 2 units in the last place; NaN for NaN; below -87 it stays at exp(-87), which 1 absorbs.
inline Floats exp_of_negative(Floats x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Floats shifted = x * all(1.44269504f) + magic;
  const Floats whole = shifted - magic;
  Floats rest = x - whole * all(0.693359375f);
  rest = rest - whole * all(-2.12194440e-4f);
  Floats value = all(1.0f / 720);
  value = value * rest + all(1.0f / 120);
  value = value * rest + all(1.0f / 24);
  value = value * rest + all(1.0f / 6);
  value = value * rest + all(0.5f);
  value = value * rest + all(1.0f);
  value = value * rest + all(1.0f);
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;  // 2^whole: the magic number's own bits are shifted out
  Floats power;
  std::memcpy(&power, &bits, sizeof power);
  return value * power;
}

// log(y) for 1 <= y <= 3 to 2 units in the last place of the larger of 1 and it; NaN for NaN.
inline Floats log_up_to_three(Floats y) {
  const Floats none = Floats{};
  const Ints halved = y > all(1.41421356f);
  const Floats mantissa = halved ? y * all(0.5f) : y;
  const Floats ratio = (mantissa - all(1.0f)) / (mantissa + all(1.0f));
  const Floats square = ratio * ratio;
  Floats series = all(1.0f / 11);
  series = series * square + all(1.0f / 9);
  series = series * square + all(1.0f / 7);
  series = series * square + all(1.0f / 5);
  series = series * square + all(1.0f / 3);
  series = series * square + all(1.0f);
  return all(2.0f) * ratio * series + (halved ? all(0.69314718f) : none);
}

}  // namespace bgs::cpu::BGS_ISA
