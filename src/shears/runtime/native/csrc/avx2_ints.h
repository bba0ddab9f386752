// i8 weights on AVX2: weights and inputs are 16-bit integers, their products 32-bit sums, which are added to fp32 sums
// before they overflow.
#pragma once
#include <immintrin.h>

#include "avx2_tables.h"
#include "layout.h"

namespace shears {
namespace {

constexpr int64_t kGroupsExact = 256;  // times 2 * 127 * 32639 stays below 2^31

// Four rows by four inputs: a quarter of a panel's group.
static inline __m256i expand_quarter(const uint8_t* mask, const uint8_t*& v) {
  const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(v));
  v += __builtin_popcount(mask[0]);
  const __m128i second = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(v));
  v += __builtin_popcount(mask[1]);
  const __m128i places = _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kTables.bytes[mask[0]])),
                                            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kTables.bytes[mask[1]])));
  const __m128i behind = _mm_set_epi8(8, 8, 8, 8, 8, 8, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(_mm_unpacklo_epi64(first, second), _mm_add_epi8(places, behind)));
}

static inline __m256i load_quarter(const uint8_t*& v) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v)));
  v += 16;
  return wide;
}

// A tile holds its tokens' scales, then four 16-bit inputs for every [group][token].
static inline size_t scales_bytes(int tile) { return round_up(sizeof(float) * static_cast<size_t>(tile), 64); }

static inline size_t int_tile_bytes(int64_t cols, int tile) {
  return scales_bytes(tile) + round_up(8 * static_cast<size_t>(groups(Values::i8, cols) * tile), 64);
}

static inline void lay_out_token(const float* x, int64_t cols, int tile, int t, char* out) {
  const float scale = symmetric_scale(x, cols, kInt16Steps);
  reinterpret_cast<float*>(out)[t] = scale;
  int16_t* inputs = reinterpret_cast<int16_t*>(out + scales_bytes(tile));
  const __m128 inverse = _mm_set_ss(inverse_scale(scale));
  for (int64_t i = 0; i < cols; ++i)
    inputs[(i / 4 * tile + t) * 4 + i % 4] = static_cast<int16_t>(_mm_cvtss_si32(_mm_mul_ss(_mm_set_ss(x[i]), inverse)));
}

static inline void lay_out_ints(const float* x, int64_t cols, int count, int tile, void* out) {
  std::memset(out, 0, int_tile_bytes(cols, tile));
  for (int t = 0; t < count; ++t) lay_out_token(x + t * cols, cols, tile, t, static_cast<char*>(out));
}

}  // namespace
}  // namespace shears
