// Writes a dense row-major weight in the panel order of matrix.h.
#pragma once
#include "matrix.h"

namespace shears {

// `data` holds panels * groups * 16 * g elements; rows and columns beyond the weight become zeros.
void pack_dense(Values values, const void* weight, int64_t rows, int64_t cols, void* data);

}  // namespace shears
