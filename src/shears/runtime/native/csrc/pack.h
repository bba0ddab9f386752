// Writes a dense row-major weight in the panel order of matrix.h.
#pragma once
#include "matrix.h"

namespace shears {

// `data` holds panels * groups * group_bytes; rows and columns beyond the weight become zeros. A row of i4 is
// (cols + 1) / 2 bytes, the first column in the lower half.
void pack_dense(Values values, const void* weight, int64_t rows, int64_t cols, void* data);

}  // namespace shears
