// For every mask byte, where the kept values of its eight places go: byte shuffles for values of 1 and 2 bytes, lane
// numbers for values of 4 bytes.
#pragma once
#include <cstdint>

namespace shears {
namespace {

struct Tables {
  alignas(32) int32_t lanes[256][8];   // for vpermps; the sign bit marks a pruned place
  alignas(16) uint8_t words[256][16];  // for vpshufb; 0x80 writes a zero
  alignas(32) uint8_t floats[256][32];  // for vpshufb on the same 8 words in both lanes: into the upper halves of fp32 numbers
  alignas(8) uint8_t bytes[256][8];
};

constexpr Tables make_tables() {
  Tables tables{};
  for (int mask = 0; mask < 256; ++mask)
    for (int place = 0, next = 0; place < 8; ++place) {
      const bool kept = mask >> place & 1;
      tables.lanes[mask][place] = kept ? next : INT32_MIN;
      tables.words[mask][2 * place] = static_cast<uint8_t>(kept ? 2 * next : 0x80);
      tables.words[mask][2 * place + 1] = static_cast<uint8_t>(kept ? 2 * next + 1 : 0x80);
      tables.floats[mask][4 * place] = tables.floats[mask][4 * place + 1] = 0x80;
      tables.floats[mask][4 * place + 2] = tables.words[mask][2 * place];
      tables.floats[mask][4 * place + 3] = tables.words[mask][2 * place + 1];
      tables.bytes[mask][place] = static_cast<uint8_t>(kept ? next : 0x80);
      next += kept;
    }
  return tables;
}

constexpr Tables kTables = make_tables();

}  // namespace
}  // namespace shears
