// The three kinds of weights on AVX-512: how a group of a panel becomes one register, and how it is multiplied by a
// token's inputs.
//
// `expand` merges into a zeroed register: the zero-masking form of vexpand waits for its old destination on Zen 4
// (3.5 against 6.5 cycles). It loads 64 bytes from the next value on, also beyond the last value: kOverread.
#pragma once
#include <immintrin.h>

#include "layout.h"

namespace shears {
namespace {

static inline __m512i load512(const void* from) { return _mm512_loadu_si512(from); }

// A register of zeros that the compiler can neither fold into a zero-masked instruction nor copy from another register.
static inline __m512i fresh_zero() {
  __m512i zero;
  __asm__ volatile("vpxord %0, %0, %0" : "=v"(zero));
  return zero;
}

// A load that stays apart from the instruction that uses its value, or may be folded into it.
template <bool Register>
static inline __m512i load_kept(const void* from) {
  __m512i loaded = load512(from);
  if constexpr (Register) __asm__("" : "+v"(loaded));
  return loaded;
}

// Loads a mask word into a general register, for kmov and popcnt; reading it from memory twice costs half a cycle more.
template <class Word>
static inline Word load_mask(const uint8_t* from) {
  Word bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  __asm__("" : "+r"(bits));
  return bits;
}

// sum += weights * an input (or a pair, or four): from memory, or from a register that several panels share. Written in
// assembly because GCC 12 to 14 copies the sums of the intrinsics into other registers and back at every step, and spills
// the inputs.
#define SHEARS_STEP(NAME, INSTRUCTION, VECTOR, INPUT)                                                \
  static inline void NAME(VECTOR& sum, VECTOR w, const INPUT* x) {                                  \
    __asm__(INSTRUCTION " %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*x));                      \
  }                                                                                                 \
  static inline void NAME(VECTOR& sum, VECTOR w, __m512i x) { __asm__(INSTRUCTION " %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x)); }
SHEARS_STEP(add_floats, "vfmadd231ps", __m512, float)
SHEARS_STEP(add_pairs, "vdpbf16ps", __m512, uint32_t)
SHEARS_STEP(add_fours, "vpdpbusd", __m512i, int32_t)
#undef SHEARS_STEP

struct F32 {
  using Element = float;
  using Input = float;  // the inputs of one token and group
  using Weights = __m512;
  using Sum = __m512;
  static constexpr int kGroup = 1, kMaxTile = 16;
  static constexpr bool kInBlocks = false;

  static inline Sum zero() { return _mm512_setzero_ps(); }
  template <bool Register>
  static inline __m512i expand(const uint8_t* mask, const Element*& v) {
    const auto bits = load_mask<uint16_t>(mask);
    const __m512i wide = _mm512_mask_expand_epi32(fresh_zero(), bits, load_kept<Register>(v));
    v += __builtin_popcount(bits);
    return wide;
  }
  static inline Weights weights(__m512i raw) { return _mm512_castsi512_ps(raw); }
  template <class From>
  static inline void step(Sum& sum, Weights w, From x) {
    add_floats(sum, w, x);
  }
  static inline __m512i shared(const Input* x) { return _mm512_castps_si512(_mm512_set1_ps(*x)); }
  static inline void merge(Sum& sum, const Sum& other) { sum = _mm512_add_ps(sum, other); }
  static inline __m512 result(const Sum& sum, const void*, int, int) { return sum; }
  static inline size_t header(int) { return 0; }
};

struct Bf16 {
  using Element = uint16_t;
  using Input = uint32_t;  // a pair of inputs
  using Weights = __m512;
  using Sum = __m512;
  static constexpr int kGroup = 2, kMaxTile = 16;
  static constexpr bool kInBlocks = false;

  static inline Sum zero() { return _mm512_setzero_ps(); }
  template <bool Register>
  static inline __m512i expand(const uint8_t* mask, const Element*& v) {
    const auto bits = load_mask<uint32_t>(mask);
    const __m512i wide = _mm512_mask_expand_epi16(fresh_zero(), bits, load_kept<Register>(v));
    v += __builtin_popcount(bits);
    return wide;
  }
  static inline Weights weights(__m512i raw) { return _mm512_castsi512_ps(raw); }
  template <class From>
  static inline void step(Sum& sum, Weights w, From x) {
    add_pairs(sum, w, x);
  }
  static inline __m512i shared(const Input* x) { return _mm512_set1_epi32(static_cast<int>(*x)); }
  static inline void merge(Sum& sum, const Sum& other) { sum = _mm512_add_ps(sum, other); }
  static inline __m512 result(const Sum& sum, const void*, int, int) { return sum; }
  static inline size_t header(int) { return 0; }
};

// Inputs are 16-bit integers in two signed halves, 256 hi + lo. Weights are shifted to [0, 255], because vpdpbusd takes
// unsigned bytes; the shift adds 128 times the sum of the halves, which is subtracted at the end. Integers, so exact.
struct I8 {
  using Element = uint8_t;
  struct Input {
    int32_t hi, lo;  // four inputs each
  };
  using Weights = __m512i;
  struct Sum {
    __m512i hi, lo;
  };
  static constexpr int kGroup = 4, kMaxTile = 8;
  static constexpr bool kInBlocks = false;

  static inline Sum zero() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
  template <bool Register>
  static inline __m512i expand(const uint8_t* mask, const Element*& v) {
    const auto bits = load_mask<uint64_t>(mask);
    const __m512i wide = _mm512_mask_expand_epi8(fresh_zero(), bits, load_kept<Register>(v));
    v += __builtin_popcountll(bits);
    return wide;
  }
  static inline Weights weights(__m512i raw) { return _mm512_xor_si512(raw, _mm512_set1_epi8(-128)); }
  static inline void step(Sum& sum, Weights w, const Input* x) {
    add_fours(sum.hi, w, &x->hi);
    add_fours(sum.lo, w, &x->lo);
  }
  static inline void step(Sum& sum, Weights w, Sum x) {
    add_fours(sum.hi, w, x.hi);
    add_fours(sum.lo, w, x.lo);
  }
  static inline Sum shared(const Input* x) {
    return {_mm512_set1_epi32(x->hi), _mm512_set1_epi32(x->lo)};
  }
  static inline void merge(Sum& sum, const Sum& other) {
    sum.hi = _mm512_add_epi32(sum.hi, other.hi);
    sum.lo = _mm512_add_epi32(sum.lo, other.lo);
  }
  // A tile's header: its tokens' scales, sums of hi and sums of lo.
  static inline __m512 result(const Sum& sum, const void* tile, int width, int t) {
    const float* scales = static_cast<const float*>(tile);
    const int32_t* sums = static_cast<const int32_t*>(tile) + width;
    const __m512 hi = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum.hi, _mm512_set1_epi32(128 * sums[t])));
    const __m512 lo = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum.lo, _mm512_set1_epi32(128 * sums[width + t])));
    return _mm512_mul_ps(_mm512_fmadd_ps(hi, _mm512_set1_ps(256.0f), lo), _mm512_set1_ps(scales[t]));
  }
  static inline size_t header(int width) { return round_up(sizeof(float) * 3 * static_cast<size_t>(width), 64); }
};

}  // namespace
}  // namespace shears
