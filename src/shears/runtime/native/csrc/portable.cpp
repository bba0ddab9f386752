// Any processor: a panel's block of columns becomes dense fp32 and is multiplied by code that the compiler vectorises.
// Inputs stay fp32.
#include <cstring>

#include "isa.h"
#include "layout.h"

namespace shears {
namespace {

constexpr int64_t kBlock = 256;  // inputs per block: 16 KB of dense weights
constexpr int kTile = 4;

int walks(Values, bool, int64_t, Walk* out) {
  out[0] = {1, false, kTile, 0};
  return 1;
}

int tile(Values, int64_t tokens, const Walk&) { return tokens < kTile ? 1 : kTile; }
size_t tile_bytes(Values values, int64_t cols, int tile) { return interleaved_bytes(values, cols, tile); }
size_t scratch_bytes(const Matrix&, int64_t tokens, const Walk&) {
  return sizeof(float) * kPanelRows * static_cast<size_t>(kBlock + tokens + kTile);
}

void prepare(Values values, const float* x, int64_t cols, int count, int tile, void* out) {
  interleave(values, x, cols, count, tile, static_cast<float*>(out));
}

template <Values V>
float element(const void* data, int64_t i) {
  if constexpr (V == Values::f32) return static_cast<const float*>(data)[i];
  if constexpr (V == Values::bf16) return from_bf16(static_cast<const uint16_t*>(data)[i]);
  return static_cast<const int8_t*>(data)[i];
}

// The value at `i` if `kept` is 1, else +0; without a branch, which would be mispredicted half of the time.
template <Values V>
float element_if(const void* data, int64_t i, uint32_t kept) {
  if constexpr (V == Values::i8) return static_cast<float>(static_cast<const int8_t*>(data)[i] & -static_cast<int32_t>(kept));
  const float value = element<V>(data, i);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits &= 0u - kept;
  float masked;
  std::memcpy(&masked, &bits, 4);
  return masked;
}

uint64_t mask_word(const uint8_t* bytes, int count) {
  uint64_t word = 0;
  for (int k = 0; k < count; ++k) word |= static_cast<uint64_t>(bytes[k]) << (8 * k);
  return word;
}

// Write columns [first, last) of panel p as dense[column - first][row], and advance `at`, the index in the kept
// weights. May read the value after the last kept one (kOverread).
template <Values V>
void expand(const Matrix& matrix, int64_t p, int64_t first, int64_t last, int64_t& at, float* dense) {
  constexpr int g = V == Values::f32 ? 1 : V == Values::bf16 ? 2 : 4;
  const int64_t all = groups(V, matrix.cols);
  for (int64_t j = first / g; j * g < last; ++j) {
    float* to = dense + (j * g - first) * kPanelRows;
    const uint64_t word = matrix.masks ? mask_word(matrix.masks + (p * all + j) * 2 * g, 2 * g) : ~uint64_t{0};
    for (int r = 0; r < kPanelRows; ++r)
      for (int i = 0; i < g; ++i) {
        const uint32_t kept = word >> (r * g + i) & 1;
        to[i * kPanelRows + r] = element_if<V>(matrix.data, at, kept);
        at += kept;
      }
  }
}

// The same for i4, scales and zero points applied; `at` counts bytes. `first` is the start of a block.
template <>
void expand<Values::i4>(const Matrix& matrix, int64_t p, int64_t first, int64_t last, int64_t& at, float* dense) {
  const int64_t all = groups(Values::i4, matrix.cols), block_count = blocks(matrix.cols);
  const auto* data = static_cast<const uint8_t*>(matrix.data);
  for (int64_t j = first / 4; j * 4 < last; ++j) {
    float* to = dense + (j * 4 - first) * kPanelRows;
    const uint64_t word = matrix.masks ? mask_word(matrix.masks + (p * all + j) * 8, 8) : ~uint64_t{0};
    const int64_t block = p * block_count + j / kBlockGroups;
    int next = 0;
    for (int r = 0; r < kPanelRows; ++r) {
      const float scale = from_half(matrix.block_scales[block * kPanelRows + r]);
      const int zero = zero_point(matrix.zeros + block * (kPanelRows / 2), r);
      for (int i = 0; i < 4; ++i) {
        const int kept = static_cast<int>(word >> (r * 4 + i) & 1);
        const int step = (data[at + next / 2] >> (next % 2 * 4) & 15) - zero;  // may read one byte beyond the group
        to[i * kPanelRows + r] = scale * static_cast<float>(step & -kept);
        next += kept;
      }
    }
    at += (next + 1) / 2;
  }
}

#if defined(__GNUC__)
using Four = float __attribute__((vector_size(16)));  // the compiler emulates it where the processor has no such vectors
#else
struct Four {
  float value[4];
  Four& operator+=(const Four& other) {
    for (int k = 0; k < 4; ++k) value[k] += other.value[k];
    return *this;
  }
  Four operator*(float factor) const { return {{value[0] * factor, value[1] * factor, value[2] * factor, value[3] * factor}}; }
};
#endif

Four load_four(const float* from) {
  Four four;
  std::memcpy(&four, from, sizeof(four));
  return four;
}

void multiply_block(const float* dense, int64_t count, const float* x, int tile, float* sums) {
  for (int t = 0; t < tile; ++t) {
    float* to = sums + t * kPanelRows;
    Four own[4] = {load_four(to), load_four(to + 4), load_four(to + 8), load_four(to + 12)};
    for (int64_t i = 0; i < count; ++i)
      for (int k = 0; k < 4; ++k) own[k] += load_four(dense + i * kPanelRows + 4 * k) * x[i * tile + t];
    std::memcpy(to, own, sizeof(own));
  }
}

template <Values V>
void panel(const Job& job, int64_t p, float* scratch) {
  const Matrix& matrix = *job.matrix;
  const int width = tile(V, job.tokens, job.walk);
  const int64_t tiles = (job.tokens + width - 1) / width, inputs = groups(V, matrix.cols) * group_size(V);
  const char* x = static_cast<const char*>(job.prepared);
  const size_t stride = interleaved_bytes(V, matrix.cols, width);
  float* sums = scratch + kBlock * kPanelRows;
  std::memset(sums, 0, sizeof(float) * kPanelRows * width * tiles);
  int64_t at = matrix.masks ? matrix.offsets[p] : p * kPanelRows * inputs / (V == Values::i4 ? 2 : 1);
  for (int64_t first = 0; first < inputs; first += kBlock) {
    const int64_t last = first + kBlock < inputs ? first + kBlock : inputs;
    expand<V>(matrix, p, first, last, at, scratch);
    for (int64_t t = 0; t < tiles; ++t)
      multiply_block(scratch, last - first, reinterpret_cast<const float*>(x + t * stride) + first * width, width,
                     sums + t * width * kPanelRows);
  }
  for (int64_t t = 0; t < job.tokens; ++t) store(job, p, t, sums + t * kPanelRows);
}

void run(const Job& job, int64_t first, int64_t last, void* scratch) {
  for (int64_t p = first; p < last; ++p) switch (job.matrix->values) {
      case Values::f32: panel<Values::f32>(job, p, static_cast<float*>(scratch)); break;
      case Values::bf16: panel<Values::bf16>(job, p, static_cast<float*>(scratch)); break;
      case Values::i8: panel<Values::i8>(job, p, static_cast<float*>(scratch)); break;
      case Values::i4: panel<Values::i4>(job, p, static_cast<float*>(scratch)); break;
    }
}

}  // namespace

const Isa& portable_isa() {
  static const Isa table{"portable", walks, tile, tile_bytes, prepare, scratch_bytes, run};
  return table;
}

}  // namespace shears
