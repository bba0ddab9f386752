// AVX2 with FMA. For one token or one tile of tokens, kept weights are expanded in registers; for more tokens, a
// panel is expanded once into the cache (as fp32, or as 16-bit integers) and multiplied tile by tile.
#include "avx2_floats.h"
#include "avx2_int4.h"
#include "avx2_ints.h"

namespace shears {
namespace {

int walks(Values, bool sparse, int64_t, Walk* out) {
  constexpr int kAhead[] = {4096, 1024, 12288};
  for (int k = 0; k < 3; ++k) out[k] = {1, false, 4, kAhead[k]};
  return sparse ? 3 : 1;
}

int tile(Values values, int64_t tokens, const Walk&) {
  if (values == Values::i4) return tokens < 2 ? 1 : tokens == 2 ? 2 : 4;
  if (tokens <= 2 || values == Values::i8) return tokens < 2 ? 1 : 2;
  return 4;
}

size_t tile_bytes(Values values, int64_t cols, int tile) {
  if (values == Values::i4) return int4_tile_bytes(cols, tile);
  return values == Values::i8 ? int_tile_bytes(cols, tile) : interleaved_bytes(values, cols, tile);
}

void prepare(Values values, const float* x, int64_t cols, int count, int tile, void* out) {
  if (values == Values::i8) return lay_out_ints(x, cols, count, tile, out);
  if (values == Values::i4) return lay_out_int4(x, cols, count, tile, out);
  interleave(values, x, cols, count, tile, static_cast<float*>(out));
}

// A panel in the cache: 16 rows of fp32, of 16-bit integers, or of bytes.
size_t scratch_bytes(const Matrix& matrix, int64_t tokens, const Walk& walk) {
  const size_t inputs = static_cast<size_t>(groups(matrix.values, matrix.cols) * group_size(matrix.values));
  return tokens <= tile(matrix.values, tokens, walk) ? 0 : inputs * kPanelRows * (matrix.values == Values::i4 ? 1 : matrix.values == Values::i8 ? 2 : 4);
}

// The start of a panel's masks and of its values.
struct Panel {
  const uint8_t* masks;
  const uint8_t* data;
};

Panel panel_at(const Matrix& matrix, int64_t p) {
  const int64_t count = groups(matrix.values, matrix.cols);
  const int64_t element = group_bytes(matrix.values) * (matrix.values == Values::i4 ? 2 : 1) / (kPanelRows * group_size(matrix.values));
  const int64_t first = matrix.masks ? matrix.offsets[p] * element : p * count * group_bytes(matrix.values);
  return {matrix.masks ? matrix.masks + p * count * 2 * group_size(matrix.values) : nullptr,
          static_cast<const uint8_t*>(matrix.data) + first};
}

template <class T>
inline void next(const uint8_t*& masks, const typename T::Element*& v, int ahead, Column (&columns)[T::kGroup]) {
  _mm_prefetch(reinterpret_cast<const char*>(v) + ahead, _MM_HINT_T0);
  if (!masks) return T::load(v, columns);
  T::expand(masks, v, columns);
  masks += 2 * T::kGroup;
}

template <int M>
inline void step(const Column& column, const float* x, Column (&sums)[M]) {
#pragma GCC unroll 4
  for (int t = 0; t < M; ++t) {
    const __m256 input = _mm256_broadcast_ss(x + t);
    sums[t].top = _mm256_fmadd_ps(column.top, input, sums[t].top);
    sums[t].bottom = _mm256_fmadd_ps(column.bottom, input, sums[t].bottom);
  }
}

template <int M>
void store_columns(const Job& job, int64_t p, int64_t first, const Column (&sums)[M]) {
  alignas(32) float rows[kPanelRows];
  for (int t = 0; t < M && first + t < job.tokens; ++t) {
    _mm256_store_ps(rows, sums[t].top), _mm256_store_ps(rows + 8, sums[t].bottom);
    store(job, p, first + t, rows);
  }
}

// With few tokens, several columns have separate sums, so that no addition waits for the one before.
template <class T, int M>
void stream(const Job& job, int64_t p) {
  constexpr int g = T::kGroup, kApart = M == 1 ? 4 : M == 2 ? 2 : 1, kGroups = kApart > g ? kApart / g : 1;
  Panel panel = panel_at(*job.matrix, p);
  const int64_t count = groups(T::kValues, job.matrix->cols);
  const float* x = static_cast<const float*>(job.prepared);
  auto v = reinterpret_cast<const typename T::Element*>(panel.data);
  Column part[kApart][M] = {}, columns[g];
  int64_t j = 0;
  for (; j + kGroups <= count; j += kGroups) {
#pragma GCC unroll 4
    for (int u = 0; u < kGroups; ++u) {
      next<T>(panel.masks, v, job.walk.ahead, columns);
#pragma GCC unroll 2
      for (int i = 0; i < g; ++i, x += M) step<M>(columns[i], x, part[(u * g + i) % kApart]);
    }
  }
  for (; j < count; ++j) {
    next<T>(panel.masks, v, job.walk.ahead, columns);
    for (int i = 0; i < g; ++i, x += M) step<M>(columns[i], x, part[0]);
  }
#pragma GCC unroll 4
  for (int k = 1; k < kApart; ++k)
    for (int t = 0; t < M; ++t) {
      part[0][t].top = _mm256_add_ps(part[0][t].top, part[k][t].top);
      part[0][t].bottom = _mm256_add_ps(part[0][t].bottom, part[k][t].bottom);
    }
  store_columns<M>(job, p, 0, part[0]);
}

// One token by packed bf16 weights: a mask byte covers four rows by two inputs; one shuffle puts its kept weights
// into the upper halves of fp32 numbers, which are multiplied by the pair of inputs.
void stream_pairs(const Job& job, int64_t p) {
  Panel panel = panel_at(*job.matrix, p);
  const int64_t count = groups(Values::bf16, job.matrix->cols);
  const float* x = static_cast<const float*>(job.prepared);
  auto v = reinterpret_cast<const uint16_t*>(panel.data);
  const uint8_t* table = kTables.floats[0];
  __m256 sums[4] = {};
  for (int64_t j = 0; j < count; ++j) {
    double pair;
    uint32_t bits;
    std::memcpy(&pair, x + 2 * j, 8), std::memcpy(&bits, panel.masks + 4 * j, 4);
    const __m256 inputs = _mm256_castpd_ps(_mm256_set1_pd(pair));
    _mm_prefetch(reinterpret_cast<const char*>(v) + job.walk.ahead, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const uint32_t place = (q ? bits >> (8 * q - 5) : bits << 5) & 0xff << 5;  // the offset of a mask byte's row of 32 bytes
      const __m256i places = _mm256_load_si256(reinterpret_cast<const __m256i*>(table + place));
      const __m256i words = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v)));
      sums[q] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_shuffle_epi8(words, places)), inputs, sums[q]);
      v += __builtin_popcount(place);
    }
  }
  alignas(32) float pairs[32], rows[kPanelRows];
  for (int q = 0; q < 4; ++q) _mm256_store_ps(pairs + 8 * q, sums[q]);
  for (int r = 0; r < kPanelRows; ++r) rows[r] = pairs[2 * r] + pairs[2 * r + 1];
  store(job, p, 0, rows);
}

template <class T>
void from_cache(const Job& job, int64_t p, float* scratch) {
  constexpr int M = 4;
  Panel panel = panel_at(*job.matrix, p);
  const int64_t count = groups(T::kValues, job.matrix->cols) * T::kGroup;
  auto v = reinterpret_cast<const typename T::Element*>(panel.data);
  Column columns[T::kGroup];
  for (int64_t i = 0; i < count; i += T::kGroup) {
    next<T>(panel.masks, v, job.walk.ahead, columns);
    for (int k = 0; k < T::kGroup; ++k)
      _mm256_store_ps(scratch + 16 * (i + k), columns[k].top), _mm256_store_ps(scratch + 16 * (i + k) + 8, columns[k].bottom);
  }
  const char* tile = static_cast<const char*>(job.prepared);
  for (int64_t t = 0; t < job.tokens; t += M, tile += interleaved_bytes(T::kValues, job.matrix->cols, M)) {
    const float* x = reinterpret_cast<const float*>(tile);
    Column sums[M] = {};
    for (int64_t i = 0; i < count; ++i)
      step<M>({_mm256_load_ps(scratch + 16 * i), _mm256_load_ps(scratch + 16 * i + 8)}, x + i * M, sums);
    store_columns<M>(job, p, t, sums);
  }
}

template <class T>
void float_panel(const Job& job, int64_t p, void* scratch) {
  if (job.tokens > 4) return from_cache<T>(job, p, static_cast<float*>(scratch));
  if (T::kValues == Values::bf16 && job.tokens == 1 && job.matrix->masks) return stream_pairs(job, p);
  switch (tile(T::kValues, job.tokens, job.walk)) {
    case 1: return stream<T, 1>(job, p);
    case 2: return stream<T, 2>(job, p);
  }
  stream<T, 4>(job, p);
}

template <int M>
void empty(__m256i (&exact)[M][4], __m256 (&sums)[M][4]) {
  for (int t = 0; t < M; ++t)
    for (int q = 0; q < 4; ++q) {
      sums[t][q] = _mm256_add_ps(sums[t][q], _mm256_cvtepi32_ps(exact[t][q]));
      exact[t][q] = _mm256_setzero_si256();
    }
}

// One tile of M tokens; `quarter(q)` gives the next four rows by four inputs.
template <int M, class F>
inline void int_tile(const Job& job, int64_t p, int64_t first, const char* tile, F quarter) {
  const int64_t count = groups(Values::i8, job.matrix->cols);
  const char* x = tile + scales_bytes(M);
  __m256i exact[M][4] = {};
  __m256 sums[M][4] = {};
  for (int64_t j = 0; j < count; ++j) {
    if (j % kGroupsExact == 0) empty<M>(exact, sums);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const __m256i w = quarter();
#pragma GCC unroll 2
      for (int t = 0; t < M; ++t) {
        long long inputs;
        std::memcpy(&inputs, x + (j * M + t) * 8, 8);
        exact[t][q] = _mm256_add_epi32(exact[t][q], _mm256_madd_epi16(w, _mm256_set1_epi64x(inputs)));
      }
    }
  }
  empty<M>(exact, sums);
  for (int t = 0; t < M && first + t < job.tokens; ++t) {
    alignas(32) float pairs[32], rows[kPanelRows];
    for (int q = 0; q < 4; ++q) _mm256_store_ps(pairs + 8 * q, sums[t][q]);
    for (int r = 0; r < kPanelRows; ++r) rows[r] = (pairs[2 * r] + pairs[2 * r + 1]) * reinterpret_cast<const float*>(tile)[t];
    store(job, p, first + t, rows);
  }
}

template <int M>
void int_panel(const Job& job, int64_t p, void* scratch) {
  Panel panel = panel_at(*job.matrix, p);
  auto next_quarter = [&] {
    _mm_prefetch(reinterpret_cast<const char*>(panel.data) + job.walk.ahead, _MM_HINT_T0);
    if (!panel.masks) return load_quarter(panel.data);
    panel.masks += 2;
    return expand_quarter(panel.masks - 2, panel.data);
  };
  const char* tile = static_cast<const char*>(job.prepared);
  if (job.tokens <= M) return int_tile<M>(job, p, 0, tile, next_quarter);
  __m256i* dense = static_cast<__m256i*>(scratch);
  const int64_t count = groups(Values::i8, job.matrix->cols) * 4;
  for (int64_t i = 0; i < count; ++i) _mm256_store_si256(dense + i, next_quarter());
  for (int64_t t = 0; t < job.tokens; t += M, tile += int_tile_bytes(job.matrix->cols, M)) {
    const __m256i* w = dense;
    int_tile<M>(job, p, t, tile, [&] { return _mm256_load_si256(w++); });
  }
}

// One tile of M tokens by i4 weights; `group()` gives the next sixteen rows by four inputs.
template <int M, class F>
void int4_tile(const Job& job, int64_t p, int64_t first, const char* x, F group) {
  const Matrix& matrix = *job.matrix;
  const int64_t count = groups(Values::i4, matrix.cols), block_count = blocks(matrix.cols);
  Column sums[M] = {};
  for (int64_t b = 0; b < block_count; ++b, x += int4_block_bytes(M)) {
    const Int4Block inputs = int4_block(x, M);
    const int64_t block = p * block_count + b, left = count - b * kBlockGroups;
    const Zeros zeros(matrix.zeros + block * (kPanelRows / 2));
    __m256i exact[M][2] = {};
    for (int64_t j = 0; j < (left < kBlockGroups ? left : kBlockGroups); ++j) {
      const Bytes w = group(zeros);
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) add_products(exact[t], w, inputs.inputs[j * M + t]);
    }
    const Column scales = block_scales(matrix.block_scales + block * kPanelRows);
    for (int t = 0; t < M; ++t) add_block_sums(sums[t], exact[t], zeros, scales, inputs.scales[t], inputs.less[t]);
  }
  store_columns<M>(job, p, first, sums);
}

template <int M>
void int4_panel(const Job& job, int64_t p, void* scratch) {
  Panel panel = panel_at(*job.matrix, p);
  auto next_group = [&](const Zeros& zeros) {
    _mm_prefetch(reinterpret_cast<const char*>(panel.data) + job.walk.ahead, _MM_HINT_T0);
    if (!panel.masks) return load_bytes(panel.data);
    panel.masks += 8;
    return expand_bytes(panel.masks - 8, panel.data, zeros);
  };
  const char* x = static_cast<const char*>(job.prepared);
  if (job.tokens <= M) return int4_tile<M>(job, p, 0, x, next_group);
  auto* kept = static_cast<__m256i*>(scratch);
  int4_tile<M>(job, p, 0, x, [&](const Zeros& zeros) {
    const Bytes w = next_group(zeros);
    _mm256_store_si256(kept, w.top), _mm256_store_si256(kept + 1, w.bottom);
    kept += 2;
    return w;
  });
  for (int64_t t = M; t < job.tokens; t += M) {
    x += int4_tile_bytes(job.matrix->cols, M);
    const auto* whole = static_cast<const __m256i*>(scratch);
    int4_tile<M>(job, p, t, x, [&](const Zeros&) {
      whole += 2;
      return Bytes{_mm256_load_si256(whole - 2), _mm256_load_si256(whole - 1)};
    });
  }
}

void run_int4_panel(const Job& job, int64_t p, void* scratch) {
  switch (tile(Values::i4, job.tokens, job.walk)) {
    case 1: return int4_panel<1>(job, p, scratch);
    case 2: return int4_panel<2>(job, p, scratch);
  }
  int4_panel<4>(job, p, scratch);
}

void run(const Job& job, int64_t first, int64_t last, void* scratch) {
  for (int64_t p = first; p < last; ++p) switch (job.matrix->values) {
      case Values::f32: float_panel<Narrow32>(job, p, scratch); break;
      case Values::bf16: float_panel<Narrow16>(job, p, scratch); break;
      case Values::i4: run_int4_panel(job, p, scratch); break;
      case Values::i8: job.tokens < 2 ? int_panel<1>(job, p, scratch) : int_panel<2>(job, p, scratch); break;
    }
}

}  // namespace

const Isa& avx2_isa() {
  static const Isa table{"avx2", walks, tile, tile_bytes, prepare, scratch_bytes, run};
  return table;
}

}  // namespace shears
