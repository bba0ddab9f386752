// i4 weights on AVX-512: how a group becomes one register of 64 bytes from 0 to 15, and how panels are multiplied block by
// block. Integers within a block are exact; blocks are added in their order in fp32.
#pragma once
#include "avx512_values.h"
#include "int4_inputs.h"

namespace shears {
namespace {

struct I4 {
  using Element = uint8_t;
  using Input = char;  // blocks of int4_inputs.h
  using Sum = __m512;
  static constexpr int kGroup = 4, kMaxTile = 16;
  static constexpr bool kInBlocks = true;

  static inline __m512 result(const Sum& sum, const void*, int, int) { return sum; }
  static inline size_t header(int) { return 0; }

  // Sixty-four nibbles, one in each byte.
  static inline __m512i nibbles(const Element* v) {
    const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v)));
    return _mm512_and_si512(_mm512_or_si512(pairs, _mm512_slli_epi16(pairs, 4)), _mm512_set1_epi8(15));
  }
  // Pruned weights become the zero point, so that they add what is subtracted at the block's end.
  static inline __m512i expand(const uint8_t* mask, const Element*& v, __m512i zeros) {
    const auto bits = load_mask<uint64_t>(mask);
    const __m512i wide = _mm512_mask_expand_epi8(zeros, bits, nibbles(v));
    v += (__builtin_popcountll(bits) + 1) / 2;
    return wide;
  }
  // The zero points of a block's sixteen rows, as 32-bit integers.
  static inline __m512i zero_points(const uint8_t* from) {
    const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    const __m128i low = _mm_set1_epi8(15);
    const __m128i upper = _mm_and_si128(_mm_srli_epi16(pairs, 4), low);
    return _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(_mm_and_si128(pairs, low), upper));
  }
  static inline __m512i in_every_byte(__m512i words) {
    return _mm512_shuffle_epi8(words, _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0x00000000));
  }
};

// The integers of a block of at most 128 inputs of a token, their scale, and the negated sum of the integers.
static inline void round_int4_block(const float* x, int64_t count, int8_t* out, float& scale, int32_t& less) {
  __m512 parts[8], largest = _mm512_setzero_ps();
  __mmask16 odd = 0;
  for (int k = 0; k < 8; ++k) {
    const int64_t left = count - 16 * k;
    parts[k] = left > 0 ? _mm512_maskz_loadu_ps(static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1), x + 16 * k) : _mm512_setzero_ps();
    largest = _mm512_max_ps(largest, _mm512_abs_ps(parts[k]));
    odd |= _mm512_cmp_ps_mask(_mm512_sub_ps(parts[k], parts[k]), _mm512_setzero_ps(), _CMP_NEQ_UQ);
  }
  scale = odd ? __builtin_nanf("") : _mm512_reduce_max_ps(largest) / kInt8Steps;
  const __m512 inverse = _mm512_set1_ps(inverse_scale(scale));
  __m512i sum = _mm512_setzero_si512();
  for (int k = 0; k < 8; ++k) {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(parts[k], inverse));
    sum = _mm512_add_epi32(sum, q);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * k), _mm512_cvtepi32_epi8(q));
  }
  less = -_mm512_reduce_add_epi32(sum);
}

static inline void lay_out_int4_block(const float* x, int64_t count, int tile, int t, char* out) {
  int32_t* inputs = reinterpret_cast<int32_t*>(out) + 2 * tile;
  alignas(64) int8_t rounded[kBlockInputs];
  round_int4_block(x, count, rounded, reinterpret_cast<float*>(out)[t], reinterpret_cast<int32_t*>(out)[tile + t]);
  for (int64_t j = 0; j < kBlockGroups; ++j) __builtin_memcpy(inputs + j * tile + t, rounded + 4 * j, 4);
}

static inline void lay_out_int4(const float* x, int64_t cols, int count, int tile, void* out) {
  if (count < tile) __builtin_memset(out, 0, int4_tile_bytes(cols, tile));
  char* at = static_cast<char*>(out);
  for (int64_t i = 0; i < cols; i += kBlockInputs, at += int4_block_bytes(tile))
    for (int t = 0; t < count; ++t) lay_out_int4_block(x + t * cols + i, cols - i, tile, t, at);
}

}  // namespace
}  // namespace shears
