// y = W x for weights of matrix.h: fp32 in and out, row-major, x [m, cols], y [m, rows].
//
// Every row of the result is computed by one thread in one order: the number of threads does not change a bit. Inputs are rounded as
// docs/kernels.md says (bf16 weights: to bf16, i8 weights: to 16-bit integers with a scale per token; both only where the
// instruction set asks for it).
#pragma once
#include "matrix.h"
#include "pool.h"

namespace shears {

// y[t*rows + o] = sum_i W[o,i] x[t*cols + i]
void multiply(const Matrix& matrix, const float* x, int64_t m, float* y, Pool& pool);

// The same for several matrices that read the same x (q, k, v; gate, up): x is converted once, threads split over all.
void multiply_many(const Matrix* const* matrices, int count, const float* x, int64_t m, float* const* y, Pool& pool);

// y += scaling * B (A x); a is [rank, cols], b is [rows, rank].
struct LowRank {
  const Matrix* a;
  const Matrix* b;
  float scaling;
};

void add_low_rank(const LowRank& update, const float* x, int64_t m, float* y, Pool& pool);

// multiply_many, then every matrix's own update (nullptr: none). The A's ride along with the matrices: two rounds of the pool in all.
void multiply_adapted(const Matrix* const* matrices, const LowRank* const* updates, int count, const float* x, int64_t m,
                      float* const* y, Pool& pool);

}  // namespace shears
