// Functions that all instruction sets share; `static`, so that each file compiles its own copy with its own flags.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "isa.h"

namespace shears {

static inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

static inline float from_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 0) {  // zero, or subnormal: fraction * 2^-24
    const float size = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    return sign ? -size : size;
  }
  const uint32_t wide = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

static inline int zero_point(const uint8_t* zeros, int row) { return zeros[row / 2] >> (row % 2 * 4) & 15; }

static inline size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

static inline size_t interleaved_bytes(Values values, int64_t cols, int tile) {
  return round_up(sizeof(float) * static_cast<size_t>(groups(values, cols) * group_size(values) * tile), 64);
}

// out[i * tile + t] = x[t * cols + i]; inputs that fill up a group, and tokens beyond `count`, become zeros.
static inline void interleave(Values values, const float* x, int64_t cols, int count, int tile, float* out) {
  const int64_t inputs = groups(values, cols) * group_size(values);
  for (int64_t i = 0; i < inputs; ++i)
    for (int t = 0; t < tile; ++t) out[i * tile + t] = i < cols && t < count ? x[t * cols + i] : 0.0f;
}

// i8 weights are multiplied by 16-bit inputs: integers up to 127 * 256 + 127, so that both signed halves fit a byte.
constexpr float kInt16Steps = 32639.0f;

// The factor from an input to its integer; 0 if the inputs are so small that it would overflow, or not finite.
static inline float inverse_scale(float scale) { return scale > 1e-35f ? 1.0f / scale : 0.0f; }

// The scale of `count` inputs whose integers go up to `steps`; NaN if an input is not finite, so that every output that
// reads them becomes NaN.
static inline float symmetric_scale(const float* x, int64_t count, float steps) {
  float largest = 0.0f, odd = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float size = __builtin_fabsf(x[i]);
    largest = size > largest ? size : largest;
    odd += x[i] - x[i];
  }
  return odd == 0.0f ? largest / steps : __builtin_nanf("");
}

// Store the sixteen sums of token t and panel p into y, without the rows beyond the matrix.
static inline void store(const Job& job, int64_t p, int64_t t, const float* sums) {
  const Matrix& matrix = *job.matrix;
  const int64_t row = p * kPanelRows, count = matrix.rows - row < kPanelRows ? matrix.rows - row : kPanelRows;
  float* y = job.y + t * matrix.rows + row;
  for (int64_t r = 0; r < count; ++r) {
    const float value = job.factor * (matrix.scales ? matrix.scales[row + r] * sums[r] : sums[r]);
    y[r] = job.add ? y[r] + value : value;
  }
}

}  // namespace shears
