// A dense row-major weight into the panel order of matrix.h.
#pragma once
#include "matrix.h"

namespace shears {

// `data` has room for panels * groups * 16 * g elements; the rows and columns beyond the weight become zeros.
void pack_dense(Values values, const void* weight, int64_t rows, int64_t cols, void* data);

}  // namespace shears
