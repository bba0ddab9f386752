// fp32 and bf16 weights on AVX2: both become fp32; inputs stay fp32.
#pragma once
#include <immintrin.h>

#include "avx2_tables.h"
#include "layout.h"

namespace shears {
namespace {

// Sixteen rows of one input.
struct Column {
  __m256 top, bottom;
};

struct Narrow32 {
  using Element = float;
  static constexpr Values kValues = Values::f32;
  static constexpr int kGroup = 1;

  static inline __m256 half(uint8_t mask, const Element*& v) {
    const __m256i places = _mm256_load_si256(reinterpret_cast<const __m256i*>(kTables.lanes[mask]));
    const __m256 spread = _mm256_permutevar8x32_ps(_mm256_loadu_ps(v), places);
    v += __builtin_popcount(mask);
    return _mm256_blendv_ps(spread, _mm256_setzero_ps(), _mm256_castsi256_ps(places));
  }
  static inline void expand(const uint8_t* mask, const Element*& v, Column (&columns)[kGroup]) {
    columns[0].top = half(mask[0], v);
    columns[0].bottom = half(mask[1], v);
  }
  static inline void load(const Element*& v, Column (&columns)[kGroup]) {
    columns[0] = {_mm256_loadu_ps(v), _mm256_loadu_ps(v + 8)};
    v += 16;
  }
};

struct Narrow16 {
  using Element = uint16_t;
  static constexpr Values kValues = Values::bf16;
  static constexpr int kGroup = 2;

  static inline __m128i quarter(uint8_t mask, const Element*& v) {
    const __m128i shuffle = _mm_load_si128(reinterpret_cast<const __m128i*>(kTables.words[mask]));
    const __m128i spread = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v)), shuffle);
    v += __builtin_popcount(mask);
    return spread;
  }
  static inline __m256i half(const uint8_t* mask, const Element*& v) {
    const __m128i first = quarter(mask[0], v), second = quarter(mask[1], v);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
  }
  static inline void widen(__m256i top, __m256i bottom, Column (&columns)[kGroup]) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    columns[0] = {_mm256_castsi256_ps(_mm256_slli_epi32(top, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(bottom, 16))};
    columns[1] = {_mm256_castsi256_ps(_mm256_and_si256(top, high)), _mm256_castsi256_ps(_mm256_and_si256(bottom, high))};
  }
  static inline void expand(const uint8_t* mask, const Element*& v, Column (&columns)[kGroup]) {
    const __m256i top = half(mask, v), bottom = half(mask + 2, v);
    widen(top, bottom, columns);
  }
  static inline void load(const Element*& v, Column (&columns)[kGroup]) {
    const auto* from = reinterpret_cast<const __m256i*>(v);
    widen(_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1), columns);
    v += 32;
  }
};

}  // namespace
}  // namespace shears
