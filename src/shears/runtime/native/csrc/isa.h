// One table of functions per instruction set, chosen once. Files compiled with an instruction set's own flags
// include only the integer types of the standard library: the linker could keep an inline function that was compiled
// there, and processors without that instruction set would run it.
#pragma once
#include <cstddef>

#include "matrix.h"

namespace shears {

// Tokens are computed in tiles; `prepare` lays out a tile's inputs for the kernel.
// One way to walk over a weight. All ways of an instruction set give the same bits. Which one is fastest depends on the
// processor, so the machine chooses by measuring (tuning.h).
struct Walk {
  int panels;        // multiplied at the same time: 1 or 2
  bool in_register;  // load kept values before they are expanded, rather than with the instruction that expands them
  int tile;          // tokens that are computed at the same time, at most
  int ahead;         // bytes of values that are prefetched
};
constexpr int kMaxWalks = 16;

struct Job {
  const Matrix* matrix;
  const void* prepared;  // tiles of `tile` tokens, `tile_bytes` apart
  int64_t tokens;
  float* y;      // [tokens, rows]
  float factor;  // y = factor * W x, or y += factor * W x
  bool add;
  Walk walk;
};

struct Isa {
  const char* name;
  int (*walks)(Values, bool sparse, int64_t tokens, Walk* out);  // the walks to time, the default first; their number
  int (*tile)(Values, int64_t tokens, const Walk&);
  size_t (*tile_bytes)(Values, int64_t cols, int tile);  // a multiple of 64
  // Lay out `count` tokens of `cols` columns; the tile's tokens beyond `count` become zeros.
  void (*prepare)(Values, const float* x, int64_t cols, int count, int tile, void* out);
  size_t (*scratch_bytes)(const Matrix&, int64_t tokens, const Walk&);  // per thread
  void (*run)(const Job&, int64_t first_panel, int64_t last_panel, void* scratch);
};

const Isa& portable_isa();
const Isa& avx2_isa();
const Isa& avx512_isa();
const Isa& amx_isa();  // fp32 weights as avx512_isa
const Isa& neon_isa();
const Isa& neon_dot_isa();  // with the dot product of 8-bit integers

struct Features {
  const char* isa;   // the instruction set in use
  bool avx2, avx512, amx, neon, neon_dot;  // whether the processor and this build can run it
};

const Isa& isa();     // the fastest for one token, or the one that SHEARS_ISA names
const Isa* find_isa(const char* name);  // nullptr: unknown or not available here
bool isa_is_forced();  // SHEARS_ISA or a caller named it: no other may be chosen by measuring
Features features();
bool choose_isa(const char* name);  // false: unknown or not available here

}  // namespace shears
