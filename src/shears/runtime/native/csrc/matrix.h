// A weight of O rows (outputs) and I columns (inputs), cut into panels of 16 rows.
//
// Inputs form groups of g: 1 (f32), 2 (bf16), 4 (i8), so that a group of a panel fills one 512-bit register. For
// panel p and group j there is one little-endian mask word of 16*g bits; bit r*g + i stands for weight[16p + r, g*j +
// i]. `data` holds the kept weights in the order (p, j, bit), `offsets[p]` the index of panel p's first kept weight.
// A matrix without masks is dense: `data` holds every weight in that order, with zeros for rows and columns beyond O
// and I.
//
// i4 has groups of 4, too, and blocks of 128 inputs: weight = scale * (nibble - zero), with a scale and a zero of its row and
// block. A group's kept nibbles begin at a byte, the first one in the lower half; `offsets` count bytes.
//
// Kernels read at most kOverread bytes beyond the last kept weight of `data`, and nothing beyond masks, offsets,
// scales and zeros.
#pragma once
#include <cstdint>

namespace shears {

enum class Values : int { f32 = 0, bf16 = 1, i8 = 2, i4 = 3 };

struct Matrix {
  Values values;
  int64_t rows, cols;
  const uint8_t* masks;    // [panels, groups, 2g] bytes; nullptr: dense
  const void* data;        // kept weights (or all of them) in panel order
  const int64_t* offsets;  // [panels], nullptr: dense
  const float* scales;     // [rows], only for i8
  const uint16_t* block_scales = nullptr;  // [panels, blocks, 16] fp16, only for i4; 0 for rows beyond the matrix
  const uint8_t* zeros = nullptr;          // [panels, blocks, 8], only for i4: row 2k in the lower half of byte k
};

constexpr int kPanelRows = 16;
constexpr int kOverread = 64;
constexpr int64_t kBlockInputs = 128, kBlockGroups = 32;  // of i4
constexpr int64_t kMaxInt8Columns = 131071;  // 128 * 128 * columns must stay below 2^31

static inline int group_size(Values values) { return values == Values::f32 ? 1 : values == Values::bf16 ? 2 : 4; }
static inline int group_bytes(Values values) { return values == Values::i4 ? 32 : 64; }  // of a dense group of a panel
static inline int64_t panels(const Matrix& m) { return (m.rows + kPanelRows - 1) / kPanelRows; }
static inline int64_t groups(Values values, int64_t cols) { return (cols + group_size(values) - 1) / group_size(values); }
static inline int64_t blocks(int64_t cols) { return (cols + kBlockInputs - 1) / kBlockInputs; }

}  // namespace shears
