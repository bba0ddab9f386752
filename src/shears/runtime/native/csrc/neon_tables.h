// For every mask, where the kept values of its places go, as indices of `tbl`, which writes a zero for an index beyond
// its table; and the number of kept values.
#pragma once
#include <cstdint>

namespace shears {
namespace {

struct Tables {
  alignas(16) uint8_t floats[16][16];  // four values of 4 bytes
  alignas(16) uint8_t words[256][16];  // eight values of 2 bytes
  alignas(8) uint8_t bytes[256][8];    // eight values of 1 byte
  uint8_t counts[256];
};

constexpr uint8_t kNowhere = 0xff;

constexpr Tables make_tables() {
  Tables tables{};
  for (int mask = 0; mask < 256; ++mask) {
    int next = 0;
    for (int place = 0; place < 8; ++place) {
      const bool kept = mask >> place & 1;
      tables.bytes[mask][place] = static_cast<uint8_t>(kept ? next : kNowhere);
      for (int byte = 0; byte < 2; ++byte)
        tables.words[mask][2 * place + byte] = static_cast<uint8_t>(kept ? 2 * next + byte : kNowhere);
      for (int byte = 0; byte < 4 && mask < 16 && place < 4; ++byte)
        tables.floats[mask][4 * place + byte] = static_cast<uint8_t>(kept ? 4 * next + byte : kNowhere);
      next += kept;
    }
    tables.counts[mask] = static_cast<uint8_t>(next);
  }
  return tables;
}

constexpr Tables kTables = make_tables();

}  // namespace
}  // namespace shears
