// y = W x for weights of matrix.h: fp32 in and out, row-major, x [m, cols], y [m, rows].
//
// One thread computes a row of the result, in one order: the number of threads does not change a bit. Inputs are
// rounded as described in docs/internals/kernels.md (for bf16 weights to bf16, for i8 weights to 16-bit integers with a scale per
// token; both only on the instruction sets that need it).
#pragma once
#include "matrix.h"
#include "pool.h"

namespace shears {

// y[t*rows + o] = sum_i W[o,i] x[t*cols + i]
void multiply(const Matrix& matrix, const float* x, int64_t m, float* y, Pool& pool);

// The same for several matrices with the same x (q, k, v; gate, up): x is converted once, and the threads share the
// work of all matrices.
void multiply_many(const Matrix* const* matrices, int count, const float* x, int64_t m, float* const* y, Pool& pool);

// y += scaling * B (A x); a is [rank, cols], b is [rows, rank].
struct LowRank {
  const Matrix* a;
  const Matrix* b;
  float scaling;
};

void add_low_rank(const LowRank& update, const float* x, int64_t m, float* y, Pool& pool);

// multiply_many, then every matrix's own update (nullptr: none). All A are multiplied together with the matrices, so
// the pool runs two jobs in all.
void multiply_adapted(const Matrix* const* matrices, const LowRank* const* updates, int count, const float* x, int64_t m,
                      float* const* y, Pool& pool);

}  // namespace shears
