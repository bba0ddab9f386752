// i4 weights on AVX2: a group of a panel becomes 64 bytes from 0 to 15, which are multiplied by 8-bit inputs. The sums of a
// block are exact; blocks are added in their order in fp32.
#pragma once
#include <immintrin.h>

#include "avx2_floats.h"
#include "avx2_tables.h"
#include "int4_inputs.h"

namespace shears {
namespace {

// Sixteen rows by four inputs.
struct Bytes {
  __m256i top, bottom;
};

// The lower and the upper halves of eight bytes, in turns.
static inline __m128i spread_nibbles(__m128i pairs) {
  const __m128i low = _mm_set1_epi8(15);
  return _mm_unpacklo_epi8(_mm_and_si128(pairs, low), _mm_and_si128(_mm_srli_epi16(pairs, 4), low));
}

// The zero points of a block: as 32-bit integers, and as bytes for each of a row's four inputs.
struct Zeros {
  explicit Zeros(const uint8_t* from) {
    const __m128i sixteen = spread_nibbles(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    const __m256i every = _mm256_set1_epi32(0x01010101);
    top = _mm256_cvtepu8_epi32(sixteen), bottom = _mm256_cvtepu8_epi32(_mm_srli_si128(sixteen, 8));
    bytes = {_mm256_mullo_epi32(top, every), _mm256_mullo_epi32(bottom, every)};
  }
  __m256i top, bottom;
  Bytes bytes;
};

static inline Bytes load_bytes(const uint8_t*& v) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v)), low = _mm256_set1_epi8(15);
  const __m256i even = _mm256_and_si256(raw, low), odd = _mm256_and_si256(_mm256_srli_epi16(raw, 4), low);
  const __m256i first = _mm256_unpacklo_epi8(even, odd), second = _mm256_unpackhi_epi8(even, odd);
  v += 32;
  return {_mm256_permute2x128_si256(first, second, 0x20), _mm256_permute2x128_si256(first, second, 0x31)};
}

// The nibbles of a mask byte's kept weights, from nibble number `at` of a group on.
static inline uint64_t eight_nibbles(const uint8_t* v, int at) {
  uint64_t word;
  std::memcpy(&word, v + at / 2, 8);
  return word >> (at % 2 * 4) & 0xffffffff;
}

// Four rows by four inputs; a pruned weight becomes its zero point.
static inline __m128i expand_rows(const uint8_t* mask, const uint8_t* v, int& at, __m128i zeros) {
  uint64_t both = eight_nibbles(v, at);
  at += __builtin_popcount(mask[0]);
  both |= eight_nibbles(v, at) << 32;
  at += __builtin_popcount(mask[1]);
  const __m128i places = _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kTables.bytes[mask[0]])),
                                            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kTables.bytes[mask[1]])));
  const __m128i behind = _mm_set_epi8(8, 8, 8, 8, 8, 8, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m128i kept = spread_nibbles(_mm_cvtsi64_si128(static_cast<long long>(both)));
  return _mm_blendv_epi8(_mm_shuffle_epi8(kept, _mm_add_epi8(places, behind)), zeros, places);
}

static inline Bytes expand_bytes(const uint8_t* mask, const uint8_t*& v, const Zeros& zeros) {
  int at = 0;
  const __m128i a = expand_rows(mask, v, at, _mm256_castsi256_si128(zeros.bytes.top));
  const __m128i b = expand_rows(mask + 2, v, at, _mm256_extracti128_si256(zeros.bytes.top, 1));
  const __m128i c = expand_rows(mask + 4, v, at, _mm256_castsi256_si128(zeros.bytes.bottom));
  const __m128i d = expand_rows(mask + 6, v, at, _mm256_extracti128_si256(zeros.bytes.bottom, 1));
  v += (at + 1) / 2;
  return {_mm256_set_m128i(b, a), _mm256_set_m128i(d, c)};
}

// A pair of products is at most 2 * 15 * 127, so 16 bits hold it.
static inline void add_products(__m256i (&exact)[2], const Bytes& w, int32_t inputs) {
  const __m256i x = _mm256_set1_epi32(inputs), ones = _mm256_set1_epi16(1);
  exact[0] = _mm256_add_epi32(exact[0], _mm256_madd_epi16(_mm256_maddubs_epi16(w.top, x), ones));
  exact[1] = _mm256_add_epi32(exact[1], _mm256_madd_epi16(_mm256_maddubs_epi16(w.bottom, x), ones));
}

static inline Column block_scales(const uint16_t* from) {
  const auto* halves = reinterpret_cast<const __m128i*>(from);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}

static inline void add_block_sums(Column& sums, const __m256i (&exact)[2], const Zeros& zeros, const Column& scales, float scale, int32_t less) {
  const __m256i inputs = _mm256_set1_epi32(less);
  const __m256 factor = _mm256_set1_ps(scale);
  const __m256i top = _mm256_add_epi32(exact[0], _mm256_mullo_epi32(zeros.top, inputs));
  const __m256i bottom = _mm256_add_epi32(exact[1], _mm256_mullo_epi32(zeros.bottom, inputs));
  sums.top = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(top), factor), scales.top, sums.top);
  sums.bottom = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(bottom), factor), scales.bottom, sums.bottom);
}

static inline void lay_out_int4_block(const float* x, int64_t count, int tile, int t, char* out) {
  const float scale = symmetric_scale(x, count, kInt8Steps);
  const __m128 inverse = _mm_set_ss(inverse_scale(scale));
  int8_t steps[kBlockInputs] = {};
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    steps[i] = static_cast<int8_t>(_mm_cvtss_si32(_mm_mul_ss(_mm_set_ss(x[i]), inverse)));
    sum += steps[i];
  }
  reinterpret_cast<float*>(out)[t] = scale;
  reinterpret_cast<int32_t*>(out)[tile + t] = -sum;
  for (int64_t j = 0; j < kBlockGroups; ++j) std::memcpy(out + 4 * ((2 + j) * tile + t), steps + 4 * j, 4);
}

static inline void lay_out_int4(const float* x, int64_t cols, int count, int tile, void* out) {
  if (count < tile) std::memset(out, 0, int4_tile_bytes(cols, tile));
  char* at = static_cast<char*>(out);
  for (int64_t i = 0; i < cols; i += kBlockInputs, at += int4_block_bytes(tile))
    for (int t = 0; t < count; ++t)
      lay_out_int4_block(x + t * cols + i, cols - i < kBlockInputs ? cols - i : kBlockInputs, tile, t, at);
}

}  // namespace
}  // namespace shears
