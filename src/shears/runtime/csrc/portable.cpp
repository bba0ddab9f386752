// Any processor: a panel's block of columns becomes dense fp32, which the compiler's own vectorisation multiplies. Inputs stay fp32.
#include <cstring>

#include "isa.h"
#include "layout.h"

namespace shears {
namespace {

constexpr int64_t kBlock = 256;  // inputs a block: 16 KB of dense weights
constexpr int kTile = 4;

int tile(Values, int64_t tokens) { return tokens < kTile ? 1 : kTile; }
size_t tile_bytes(Values values, int64_t cols, int tile) { return interleaved_bytes(values, cols, tile); }
size_t scratch_bytes(const Matrix&, int64_t tokens) {
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

// Columns [first, last) of panel p as dense[column - first][row]; `at` is the place in the kept weights, moved on.
template <Values V>
void expand(const Matrix& matrix, int64_t p, int64_t first, int64_t last, int64_t& at, float* dense) {
  constexpr int g = V == Values::f32 ? 1 : V == Values::bf16 ? 2 : 4;
  const int64_t all = groups(V, matrix.cols);
  for (int64_t j = first / g; j * g < last; ++j) {
    const uint8_t* mask = matrix.masks ? matrix.masks + (p * all + j) * 2 * g : nullptr;
    for (int bit = 0; bit < kPanelRows * g; ++bit) {
      const bool kept = !mask || (mask[bit / 8] >> (bit % 8) & 1);
      dense[(j * g - first + bit % g) * kPanelRows + bit / g] = kept ? element<V>(matrix.data, at) : 0.0f;
      at += kept;
    }
  }
}

void multiply_block(const float* dense, int64_t count, const float* x, int tile, float* sums) {
  for (int64_t i = 0; i < count; ++i)
    for (int t = 0; t < tile; ++t) {
      const float input = x[i * tile + t];
      for (int r = 0; r < kPanelRows; ++r) sums[t * kPanelRows + r] += dense[i * kPanelRows + r] * input;
    }
}

template <Values V>
void panel(const Job& job, int64_t p, float* scratch) {
  const Matrix& matrix = *job.matrix;
  const int width = tile(V, job.tokens);
  const int64_t tiles = (job.tokens + width - 1) / width, inputs = groups(V, matrix.cols) * group_size(V);
  const char* x = static_cast<const char*>(job.prepared);
  const size_t stride = interleaved_bytes(V, matrix.cols, width);
  float* sums = scratch + kBlock * kPanelRows;
  std::memset(sums, 0, sizeof(float) * kPanelRows * width * tiles);
  int64_t at = matrix.masks ? matrix.offsets[p] : p * kPanelRows * inputs;
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
    }
}

}  // namespace

const Isa& portable_isa() {
  static const Isa table{"portable", tile, tile_bytes, prepare, scratch_bytes, run};
  return table;
}

}  // namespace shears
