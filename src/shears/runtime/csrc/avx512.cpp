// AVX-512 with VBMI2, BF16 and VNNI. Up to a tile of tokens, kept weights are expanded in registers as they stream from memory; for more
// tokens a panel is expanded once into the cache and multiplied tile by tile.
#include "avx512_inputs.h"

namespace shears {
namespace {

constexpr int64_t kAhead = 6144;  // bytes of values asked for ahead: what a core consumes while memory answers
constexpr int64_t kMasksAhead = 1024;

constexpr int kTiles[] = {1, 2, 3, 4, 6, 8, 12, 16};

int max_tile(Values values) { return values == Values::i8 ? I8::kMaxTile : F32::kMaxTile; }

int tile(Values values, int64_t tokens) {
  const int64_t tiles = (tokens + max_tile(values) - 1) / max_tile(values), even = (tokens + tiles - 1) / tiles;
  for (int width : kTiles)
    if (width >= even) return width;
  return max_tile(values);
}

size_t scratch_bytes(const Matrix& matrix, int64_t tokens) {
  return matrix.masks && tokens > max_tile(matrix.values) ? 64 * static_cast<size_t>(groups(matrix.values, matrix.cols)) : 0;
}

template <class T, bool Sparse>
inline __m512i next(const uint8_t*& masks, const typename T::Element*& v) {
  _mm_prefetch(reinterpret_cast<const char*>(v) + kAhead, _MM_HINT_T0);
  if constexpr (!Sparse) {
    const __m512i raw = load512(v);
    v += 64 / sizeof(typename T::Element);
    return raw;
  }
  const __m512i raw = T::expand(masks, v);
  masks += 2 * T::kGroup;
  return raw;
}

// The sums of one panel and one tile of M tokens, over all groups. Few tokens: several sums a token, or each waits for the last.
template <class T, bool Sparse, int M>
inline void panel_sums(const uint8_t* masks, const typename T::Element* v, int64_t count, const typename T::Input* x,
                       typename T::Sum (&sums)[M]) {
  constexpr int kChains = M == 1 ? 4 : M <= 3 ? 2 : 1;
  typename T::Sum part[kChains][M];
  for (auto& chain : part)
    for (auto& sum : chain) sum = T::zero();
  int64_t j = 0;
  for (; j + kChains <= count; j += kChains) {
    if constexpr (Sparse) _mm_prefetch(reinterpret_cast<const char*>(masks) + kMasksAhead, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int u = 0; u < kChains; ++u) {
      const auto w = T::weights(next<T, Sparse>(masks, v));
#pragma GCC unroll 16
      for (int t = 0; t < M; ++t) T::step(part[u][t], w, x + (j + u) * M + t);
    }
  }
  for (; j < count; ++j) {
    const auto w = T::weights(next<T, Sparse>(masks, v));
#pragma GCC unroll 16
    for (int t = 0; t < M; ++t) T::step(part[0][t], w, x + j * M + t);
  }
#pragma GCC unroll 4
  for (int u = 1; u < kChains; ++u)
    for (int t = 0; t < M; ++t) T::merge(part[0][t], part[u][t]);
  for (int t = 0; t < M; ++t) sums[t] = part[0][t];
}

void store_panel(const Job& job, int64_t p, int64_t t, __m512 sum) {
  const Matrix& matrix = *job.matrix;
  const int64_t row = p * kPanelRows;
  const __mmask16 rows = lanes(matrix.rows - row);
  if (matrix.scales) sum = _mm512_mul_ps(sum, _mm512_maskz_loadu_ps(rows, matrix.scales + row));
  float* y = job.y + t * matrix.rows + row;
  sum = _mm512_mul_ps(sum, _mm512_set1_ps(job.factor));
  if (job.add) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(rows, y));
  _mm512_mask_storeu_ps(y, rows, sum);
}

template <class T, bool Sparse, int M>
void multiply_tile(const Job& job, int64_t p, int64_t first, const char* tile, const uint8_t* masks, const void* data) {
  typename T::Sum sums[M];
  const int64_t count = (job.matrix->cols + T::kGroup - 1) / T::kGroup;
  panel_sums<T, Sparse, M>(masks, static_cast<const typename T::Element*>(data), count,
                           reinterpret_cast<const typename T::Input*>(tile + T::header(M)), sums);
  for (int t = 0; t < M && first + t < job.tokens; ++t) store_panel(job, p, first + t, T::result(sums[t], tile, M, t));
}

template <class T>
const void* expand_panel(const uint8_t* masks, const void* data, int64_t count, void* scratch) {
  auto v = static_cast<const typename T::Element*>(data);
  for (int64_t j = 0; j < count; ++j) _mm512_store_si512(static_cast<char*>(scratch) + 64 * j, next<T, true>(masks, v));
  return scratch;
}

template <class T, int M>
void run_panels(const Job& job, int64_t first, int64_t last, void* scratch) {
  const Matrix& matrix = *job.matrix;
  const int64_t count = groups(matrix.values, matrix.cols);
  const size_t stride = laid_out_bytes(matrix.values, matrix.cols, M);
  const auto* data = static_cast<const typename T::Element*>(matrix.data);
  for (int64_t p = first; p < last; ++p) {
    const char* tile = static_cast<const char*>(job.prepared);
    const uint8_t* masks = matrix.masks + p * count * 2 * T::kGroup;
    if (matrix.masks && job.tokens <= M) {
      multiply_tile<T, true, M>(job, p, 0, tile, masks, data + matrix.offsets[p]);
      continue;
    }
    const void* dense = matrix.masks ? expand_panel<T>(masks, data + matrix.offsets[p], count, scratch)
                                     : data + p * count * (64 / sizeof(typename T::Element));
    for (int64_t t = 0; t < job.tokens; t += M, tile += stride) multiply_tile<T, false, M>(job, p, t, tile, nullptr, dense);
  }
}

template <class T>
void run_values(const Job& job, int64_t first, int64_t last, void* scratch) {
  switch (tile(job.matrix->values, job.tokens)) {
    case 1: return run_panels<T, 1>(job, first, last, scratch);
    case 2: return run_panels<T, 2>(job, first, last, scratch);
    case 3: return run_panels<T, 3>(job, first, last, scratch);
    case 4: return run_panels<T, 4>(job, first, last, scratch);
    case 6: return run_panels<T, 6>(job, first, last, scratch);
    case 8: return run_panels<T, 8>(job, first, last, scratch);
  }
  if constexpr (T::kMaxTile > 8) {
    if (tile(job.matrix->values, job.tokens) == 12) return run_panels<T, 12>(job, first, last, scratch);
    return run_panels<T, 16>(job, first, last, scratch);
  }
}

void run(const Job& job, int64_t first, int64_t last, void* scratch) {
  switch (job.matrix->values) {
    case Values::f32: return run_values<F32>(job, first, last, scratch);
    case Values::bf16: return run_values<Bf16>(job, first, last, scratch);
    case Values::i8: return run_values<I8>(job, first, last, scratch);
  }
}

}  // namespace

const Isa& avx512_isa() {
  static const Isa table{"avx512", tile, laid_out_bytes, lay_out, scratch_bytes, run};
  return table;
}

}  // namespace shears
