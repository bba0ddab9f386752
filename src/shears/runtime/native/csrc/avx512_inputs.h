// Lays out a tile's inputs for the AVX-512 kernels: its header, then [group][token].
#pragma once
#include "avx512_int4.h"
#include "avx512_values.h"

namespace shears {
namespace {

static inline __mmask16 lanes(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

static inline void lay_out_bf16(const float* x, int64_t cols, int tile, int t, uint32_t* out) {
  for (int64_t i = 0; i < cols; i += 16) {
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes(cols - i), x + i));
    uint32_t pairs[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs), rounded);
    const int64_t count = cols - i >= 16 ? 8 : (cols - i + 1) / 2;
    for (int64_t k = 0; k < count; ++k) out[(i / 2 + k) * tile + t] = pairs[k];
  }
}

// The scale of a token's 16-bit integers; NaN if an input is not finite, so that every output becomes NaN.
static inline float int16_scale(const float* x, int64_t cols) {
  __m512 largest = _mm512_setzero_ps();
  __mmask16 odd = 0;
  for (int64_t i = 0; i < cols; i += 16) {
    const __m512 part = _mm512_maskz_loadu_ps(lanes(cols - i), x + i);
    largest = _mm512_max_ps(largest, _mm512_abs_ps(part));
    odd |= _mm512_cmp_ps_mask(_mm512_sub_ps(part, part), _mm512_setzero_ps(), _CMP_NEQ_UQ);
  }
  const float scale = _mm512_reduce_max_ps(largest) / kInt16Steps;
  return odd ? __builtin_nanf("") : scale;
}

// Call put(i, hi, lo) with the halves of the integers of sixteen inputs, for every sixteenth column i.
template <class Put>
static inline void split_inputs(const float* x, int64_t cols, float scale, Put put) {
  const __m512 inverse = _mm512_set1_ps(inverse_scale(scale));
  for (int64_t i = 0; i < cols; i += 16) {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes(cols - i), x + i), inverse));
    const __m512i hi = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
    put(i, hi, _mm512_sub_epi32(q, _mm512_slli_epi32(hi, 8)));
  }
}

static inline void store_bytes(void* to, __m512i words) { _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(words)); }

static inline void lay_out_i8(const float* x, int64_t cols, int tile, int t, char* out) {
  float* scales = reinterpret_cast<float*>(out);
  int32_t* sums = reinterpret_cast<int32_t*>(out) + tile;
  I8::Input* inputs = reinterpret_cast<I8::Input*>(out + I8::header(tile));
  scales[t] = int16_scale(x, cols);
  __m512i sum_hi = _mm512_setzero_si512(), sum_lo = _mm512_setzero_si512();
  split_inputs(x, cols, scales[t], [&](int64_t i, __m512i hi, __m512i lo) __attribute__((always_inline)) {
    sum_hi = _mm512_add_epi32(sum_hi, hi), sum_lo = _mm512_add_epi32(sum_lo, lo);
    int32_t halves[2][4];
    store_bytes(halves[0], hi), store_bytes(halves[1], lo);
    const int64_t count = cols - i >= 16 ? 4 : (cols - i + 3) / 4;
    for (int64_t k = 0; k < count; ++k) inputs[(i / 4 + k) * tile + t] = {halves[0][k], halves[1][k]};
  });
  sums[t] = _mm512_reduce_add_epi32(sum_hi), sums[tile + t] = _mm512_reduce_add_epi32(sum_lo);
}

static inline size_t laid_out_bytes(Values values, int64_t cols, int tile) {
  if (values == Values::i4) return int4_tile_bytes(cols, tile);
  const size_t input = values == Values::i8 ? 8 : 4, header = values == Values::i8 ? I8::header(tile) : 0;
  return header + round_up(input * static_cast<size_t>(groups(values, cols) * tile), 64);
}

static inline void lay_out(Values values, const float* x, int64_t cols, int count, int tile, void* out) {
  if (values == Values::f32) return interleave(values, x, cols, count, tile, static_cast<float*>(out));
  if (values == Values::i4) return lay_out_int4(x, cols, count, tile, out);
  if (count < tile) __builtin_memset(out, 0, laid_out_bytes(values, cols, tile));
  for (int t = 0; t < count; ++t)
    if (values == Values::bf16)
      lay_out_bf16(x + t * cols, cols, tile, t, static_cast<uint32_t*>(out));
    else
      lay_out_i8(x + t * cols, cols, tile, t, static_cast<char*>(out));
}

}  // namespace
}  // namespace shears
