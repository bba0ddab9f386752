// The inputs of i4 weights: 8-bit integers with a scale per token and block of 128 inputs. A tile holds for each block its
// tokens' scales, the negated sums of their integers (they fit 16 bits), and four inputs for every [group][token]. Included by the instruction sets
// that multiply bytes.
#pragma once
#include "layout.h"

namespace shears {
namespace {

constexpr float kInt8Steps = 127.0f;

struct Int4Block {
  const float* scales;    // [tile]
  const int32_t* less;    // [tile]
  const int32_t* inputs;  // [32][tile]
};

static inline size_t int4_block_bytes(int tile) { return 4 * static_cast<size_t>(tile) * (2 + kBlockGroups); }

static inline size_t int4_tile_bytes(int64_t cols, int tile) {
  return round_up(static_cast<size_t>(blocks(cols)) * int4_block_bytes(tile), 64);
}

static inline Int4Block int4_block(const char* at, int tile) {
  const auto* words = reinterpret_cast<const int32_t*>(at);
  return {reinterpret_cast<const float*>(at), words + tile, words + 2 * tile};
}

}  // namespace
}  // namespace shears
