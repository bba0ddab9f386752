#include "pack.h"

#include <stdexcept>

namespace shears {
namespace {

template <class T>
void pack(int g, const T* weight, int64_t rows, int64_t cols, T* data) {
  for (int64_t top = 0; top < rows; top += kPanelRows)
    for (int64_t left = 0; left < cols; left += g)
      for (int r = 0; r < kPanelRows; ++r)
        for (int i = 0; i < g; ++i) *data++ = top + r < rows && left + i < cols ? weight[(top + r) * cols + left + i] : T{};
}

uint8_t nibble(const uint8_t* weight, int64_t rows, int64_t cols, int64_t row, int64_t col) {
  if (row >= rows || col >= cols) return 0;
  return weight[row * ((cols + 1) / 2) + col / 2] >> (col % 2 * 4) & 15;
}

void pack_nibbles(const uint8_t* weight, int64_t rows, int64_t cols, uint8_t* data) {
  for (int64_t top = 0; top < rows; top += kPanelRows)
    for (int64_t left = 0; left < cols; left += 4)
      for (int r = 0; r < kPanelRows; ++r)
        for (int i = 0; i < 4; i += 2)
          *data++ = static_cast<uint8_t>(nibble(weight, rows, cols, top + r, left + i) | nibble(weight, rows, cols, top + r, left + i + 1) << 4);
}

}  // namespace

void pack_dense(Values values, const void* weight, int64_t rows, int64_t cols, void* data) {
  switch (values) {
    case Values::f32: return pack(1, static_cast<const uint32_t*>(weight), rows, cols, static_cast<uint32_t*>(data));
    case Values::bf16: return pack(2, static_cast<const uint16_t*>(weight), rows, cols, static_cast<uint16_t*>(data));
    case Values::i8: return pack(4, static_cast<const uint8_t*>(weight), rows, cols, static_cast<uint8_t*>(data));
    case Values::i4: return pack_nibbles(static_cast<const uint8_t*>(weight), rows, cols, static_cast<uint8_t*>(data));
  }
  throw std::invalid_argument("values must be 0 (f32), 1 (bf16), 2 (i8) or 3 (i4)");
}

}  // namespace shears
