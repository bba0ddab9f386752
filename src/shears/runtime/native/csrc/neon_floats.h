// fp32 and bf16 weights on NEON: both become fp32; inputs stay fp32.
#pragma once
#include <arm_neon.h>

#include "layout.h"
#include "neon_tables.h"

namespace shears {
namespace {

// Sixteen rows of one input.
struct Column {
  float32x4_t quarters[4];
};

struct Float32 {
  using Element = float;
  static constexpr Values kValues = Values::f32;
  static constexpr int kGroup = 1;

  static inline float32x4_t quarter(int mask, const Element*& v) {
    const uint8x16_t kept = vld1q_u8(reinterpret_cast<const uint8_t*>(v));
    v += kTables.counts[mask];
    return vreinterpretq_f32_u8(vqtbl1q_u8(kept, vld1q_u8(kTables.floats[mask])));
  }
  static inline void expand(const uint8_t* mask, const Element*& v, Column (&columns)[kGroup]) {
    for (int byte = 0; byte < 2; ++byte) {
      columns[0].quarters[2 * byte] = quarter(mask[byte] & 15, v);
      columns[0].quarters[2 * byte + 1] = quarter(mask[byte] >> 4, v);
    }
  }
  static inline void load(const Element*& v, Column (&columns)[kGroup]) {
    for (int q = 0; q < 4; ++q) columns[0].quarters[q] = vld1q_f32(v + 4 * q);
    v += 16;
  }
};

struct Bfloat16 {
  using Element = uint16_t;
  static constexpr Values kValues = Values::bf16;
  static constexpr int kGroup = 2;

  // Four rows by two inputs: a bf16 number is the upper half of an fp32 number.
  static inline void widen(uint8x16_t pairs, int q, Column (&columns)[kGroup]) {
    const uint32x4_t both = vreinterpretq_u32_u8(pairs);
    columns[0].quarters[q] = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
    columns[1].quarters[q] = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000)));
  }
  static inline void expand(const uint8_t* mask, const Element*& v, Column (&columns)[kGroup]) {
    for (int q = 0; q < 4; ++q) {
      const uint8x16_t kept = vld1q_u8(reinterpret_cast<const uint8_t*>(v));
      widen(vqtbl1q_u8(kept, vld1q_u8(kTables.words[mask[q]])), q, columns);
      v += kTables.counts[mask[q]];
    }
  }
  static inline void load(const Element*& v, Column (&columns)[kGroup]) {
    for (int q = 0; q < 4; ++q) widen(vld1q_u8(reinterpret_cast<const uint8_t*>(v + 8 * q)), q, columns);
    v += 32;
  }
};

}  // namespace
}  // namespace shears
