// One table of functions per instruction set, chosen once. Files compiled with an instruction set's own flags include nothing of the
// standard library but integers: an inline function compiled there could be the copy that other processors run.
#pragma once
#include <cstddef>

#include "matrix.h"

namespace shears {

// Tokens are taken in tiles; a tile's inputs are laid out for the kernel by `prepare`.
struct Job {
  const Matrix* matrix;
  const void* prepared;  // tiles of `tile` tokens, `tile_bytes` apart
  int64_t tokens;
  float* y;      // [tokens, rows]
  float factor;  // y = factor * W x, or y += it
  bool add;
};

struct Isa {
  const char* name;
  int (*tile)(Values, int64_t tokens);
  size_t (*tile_bytes)(Values, int64_t cols, int tile);  // a multiple of 64
  // Lay out x[begin .. begin + count) of `cols` columns; tokens beyond `count` as zeros.
  void (*prepare)(Values, const float* x, int64_t cols, int count, int tile, void* out);
  size_t (*scratch_bytes)(const Matrix&, int64_t tokens);  // per thread
  void (*run)(const Job&, int64_t first_panel, int64_t last_panel, void* scratch);
};

const Isa& portable_isa();
const Isa& avx2_isa();
const Isa& avx512_isa();

struct Features {
  const char* isa;   // the one in use
  bool avx2, avx512;  // what the processor and this build can run
};

const Isa& isa();     // the fastest there is, or what SHEARS_ISA names
Features features();
bool choose_isa(const char* name);  // false: unknown or not available here

}  // namespace shears
