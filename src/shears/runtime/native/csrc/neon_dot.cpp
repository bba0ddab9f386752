// NEON with the dot product of 8-bit integers (asimddp): a 16-bit input is 256 * high + low, and both signed halves fit
// a byte.
#include "neon_ints.h"

namespace shears {
namespace {

struct Ints {
  static constexpr int64_t kGroupsExact = kMaxInt8Columns;  // no sum of a whole row overflows
  static constexpr int kStreamed = 2;                       // tokens whose sums of a whole panel fit the registers
  static constexpr int kQuarters = 4;                       // of a panel, whose sums of two tokens fit the registers

  struct Sum {
    int32x4_t high, low;  // of four rows
  };
  struct Input {
    int8x16_t high, low;  // four inputs, four times
  };

  static inline void write(int16x4_t steps, char* to) {
    const int16x8_t both = vcombine_s16(vshr_n_s16(vadd_s16(steps, vdup_n_s16(128)), 8), steps);
    vst1_s8(reinterpret_cast<int8_t*>(to), vmovn_s16(both));  // the low byte, as a signed number, is steps - 256 * high
  }
  static inline Input read(const char* from) {
    int32_t halves[2];
    std::memcpy(halves, from, 8);
    return {vreinterpretq_s8_s32(vdupq_n_s32(halves[0])), vreinterpretq_s8_s32(vdupq_n_s32(halves[1]))};
  }
  static inline void step(Sum& sum, int8x16_t w, const Input& x) {
    sum.high = vdotq_s32(sum.high, w, x.high);
    sum.low = vdotq_s32(sum.low, w, x.low);
  }
  static inline void empty(Sum& sum, int64_t* exact) {
    int32_t high[4], low[4];
    vst1q_s32(high, sum.high), vst1q_s32(low, sum.low);
    for (int r = 0; r < 4; ++r) exact[r] += int64_t{256} * high[r] + low[r];
    sum = Sum{};
  }
};

}  // namespace
}  // namespace shears

#include "neon.inl"

const shears::Isa& shears::neon_dot_isa() {
  static const Isa table{"neon_dot", walks, tile, tile_bytes, prepare, scratch_bytes, run};
  return table;
}
