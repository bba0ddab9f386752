// i8 weights on NEON: inputs become 16-bit integers with a scale per token. Sums are exact, so that both ways of
// multiplying give the same bits.
#pragma once
#include <arm_neon.h>

#include "layout.h"
#include "neon_tables.h"

namespace shears {
namespace {

// Four rows by four inputs: a quarter of a panel's group.
static inline int8x16_t expand_quarter(const uint8_t* mask, const uint8_t*& v) {
  const uint8x8_t first = vqtbl1_u8(vld1q_u8(v), vld1_u8(kTables.bytes[mask[0]]));
  v += kTables.counts[mask[0]];
  const uint8x8_t second = vqtbl1_u8(vld1q_u8(v), vld1_u8(kTables.bytes[mask[1]]));
  v += kTables.counts[mask[1]];
  return vreinterpretq_s8_u8(vcombine_u8(first, second));
}

static inline int8x16_t load_quarter(const uint8_t* v) { return vreinterpretq_s8_u8(vld1q_u8(v)); }

// A tile holds its tokens' scales, then eight bytes for every [group][token]: four inputs.
static inline size_t scales_bytes(int tile) { return round_up(sizeof(float) * static_cast<size_t>(tile), 64); }

static inline size_t int_tile_bytes(int64_t cols, int tile) {
  return scales_bytes(tile) + round_up(8 * static_cast<size_t>(groups(Values::i8, cols) * tile), 64);
}

// Up to four numbers of x, with zeros for those beyond `count`.
static inline float32x4_t load_up_to_four(const float* x, int64_t count) {
  if (count >= 4) return vld1q_f32(x);
  float four[4] = {};
  std::memcpy(four, x, sizeof(float) * static_cast<size_t>(count));
  return vld1q_f32(four);
}

// The scale of a token's integers; NaN if an input is not finite, so that every output becomes NaN.
static inline float int16_scale(const float* x, int64_t cols) {
  float32x4_t largest = vdupq_n_f32(0.0f);
  for (int64_t i = 0; i < cols; i += 4) largest = vmaxq_f32(largest, vabsq_f32(load_up_to_four(x + i, cols - i)));
  const float size = vmaxvq_f32(largest);  // fmax keeps a NaN
  return size - size == 0.0f ? size / kInt16Steps : __builtin_nanf("");
}

// `write` stores four 16-bit integers as eight bytes, in the form that the products read.
template <class F>
void lay_out_ints(const float* x, int64_t cols, int count, int tile, char* out, F write) {
  std::memset(out, 0, int_tile_bytes(cols, tile));
  for (int t = 0; t < count; ++t, x += cols) {
    const float scale = int16_scale(x, cols);
    reinterpret_cast<float*>(out)[t] = scale;
    char* inputs = out + scales_bytes(tile) + 8 * t;
    for (int64_t i = 0; i < cols; i += 4, inputs += 8 * tile) {
      const float32x4_t steps = vmulq_n_f32(load_up_to_four(x + i, cols - i), inverse_scale(scale));
      write(vmovn_s32(vcvtnq_s32_f32(steps)), inputs);
    }
  }
}

}  // namespace
}  // namespace shears
