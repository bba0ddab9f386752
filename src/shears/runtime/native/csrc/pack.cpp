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

}  // namespace

void pack_dense(Values values, const void* weight, int64_t rows, int64_t cols, void* data) {
  switch (values) {
    case Values::f32: return pack(1, static_cast<const uint32_t*>(weight), rows, cols, static_cast<uint32_t*>(data));
    case Values::bf16: return pack(2, static_cast<const uint16_t*>(weight), rows, cols, static_cast<uint16_t*>(data));
    case Values::i8: return pack(4, static_cast<const uint8_t*>(weight), rows, cols, static_cast<uint8_t*>(data));
  }
  throw std::invalid_argument("values must be 0 (f32), 1 (bf16) or 2 (i8)");
}

}  // namespace shears
