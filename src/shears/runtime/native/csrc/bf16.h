// Converts bf16 to fp32 and back (rounds to nearest, ties to even; NaN stays NaN).
#pragma once
#include <cstdint>

namespace shears {

void widen(const uint16_t* from, float* to, int64_t count);
void narrow(const float* from, uint16_t* to, int64_t count);

}  // namespace shears
