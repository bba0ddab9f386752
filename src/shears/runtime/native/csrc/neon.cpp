// NEON of every 64-bit ARM processor: i8 weights are widened to 16-bit integers and multiplied into 32-bit sums
// (smlal), which are added up before they overflow.
#include "neon_ints.h"

namespace shears {
namespace {

struct Ints {
  static constexpr int64_t kGroupsExact = 512;  // times 128 * 32639 stays below 2^31
  static constexpr int kStreamed = 1;           // tokens whose sums of a whole panel fit the registers
  static constexpr int kQuarters = 2;           // of a panel, whose sums of two tokens fit the registers

  struct Sum {
    int32x4_t rows[4];  // of each row, the products of every fourth input
  };
  using Input = int16x8_t;  // four inputs, twice

  static inline void write(int16x4_t steps, char* to) { std::memcpy(to, &steps, 8); }
  static inline Input read(const char* from) {
    int16x4_t steps;
    std::memcpy(&steps, from, 8);
    return vcombine_s16(steps, steps);
  }
  static inline void step(Sum& sum, int8x16_t w, Input x) {
    const int16x8_t first = vmovl_s8(vget_low_s8(w)), second = vmovl_high_s8(w);
    sum.rows[0] = vmlal_s16(sum.rows[0], vget_low_s16(first), vget_low_s16(x));
    sum.rows[1] = vmlal_high_s16(sum.rows[1], first, x);
    sum.rows[2] = vmlal_s16(sum.rows[2], vget_low_s16(second), vget_low_s16(x));
    sum.rows[3] = vmlal_high_s16(sum.rows[3], second, x);
  }
  static inline void empty(Sum& sum, int64_t* exact) {
    for (int r = 0; r < 4; ++r) exact[r] += vaddlvq_s32(sum.rows[r]);
    sum = Sum{};
  }
};

}  // namespace
}  // namespace shears

#include "neon.inl"

const shears::Isa& shears::neon_isa() {
  static const Isa table{"neon", walks, tile, tile_bytes, prepare, scratch_bytes, run};
  return table;
}
