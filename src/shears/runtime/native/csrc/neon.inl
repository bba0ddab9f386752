// The walks over weights that neon.cpp and neon_dot.cpp share; each defines `Ints`, its products of i8 weights, before
// it includes this file. As on AVX2, kept weights of one token or one tile are expanded in registers; for more tokens,
// a panel is expanded once into the cache (as fp32, or as bytes) and multiplied tile by tile.
#include "neon_floats.h"

namespace shears {
namespace {

constexpr int kFloatTile = 4;
constexpr int kIntTile = 2;

// Whether this file multiplies by such values; portable.cpp's functions take all others.
constexpr bool covers(Values values) { return values == Values::f32 || values == Values::bf16 || values == Values::i8; }

int walks(Values values, bool sparse, int64_t tokens, Walk* out) {
  if (!covers(values)) return portable_isa().walks(values, sparse, tokens, out);
  constexpr int kAhead[] = {4096, 1024, 12288};
  for (int k = 0; k < 3; ++k) out[k] = {1, false, kFloatTile, kAhead[k]};
  return sparse ? 3 : 1;
}

int tile(Values values, int64_t tokens, const Walk& walk) {
  if (!covers(values)) return portable_isa().tile(values, tokens, walk);
  if (values == Values::i8) return tokens < 2 ? 1 : kIntTile;
  return tokens <= 2 ? static_cast<int>(tokens) : kFloatTile;
}

size_t tile_bytes(Values values, int64_t cols, int tile) {
  if (!covers(values)) return portable_isa().tile_bytes(values, cols, tile);
  return values == Values::i8 ? int_tile_bytes(cols, tile) : interleaved_bytes(values, cols, tile);
}

void prepare(Values values, const float* x, int64_t cols, int count, int tile, void* out) {
  if (!covers(values)) return portable_isa().prepare(values, x, cols, count, tile, out);
  if (values == Values::i8) return lay_out_ints(x, cols, count, tile, static_cast<char*>(out), Ints::write);
  interleave(values, x, cols, count, tile, static_cast<float*>(out));
}

// A panel in the cache: 16 rows of fp32, or of bytes.
size_t scratch_bytes(const Matrix& matrix, int64_t tokens, const Walk& walk) {
  if (!covers(matrix.values)) return portable_isa().scratch_bytes(matrix, tokens, walk);
  const size_t panel = static_cast<size_t>(groups(matrix.values, matrix.cols) * group_size(matrix.values) * kPanelRows);
  if (matrix.values == Values::i8) return tokens <= Ints::kStreamed || !matrix.masks ? 0 : panel;
  return tokens <= kFloatTile ? 0 : panel * sizeof(float);
}

// The start of a panel's masks and of its values.
struct Panel {
  const uint8_t* masks;
  const uint8_t* data;
};

Panel panel_at(const Matrix& matrix, int64_t p) {
  const int64_t count = groups(matrix.values, matrix.cols), g = group_size(matrix.values);
  const auto* data = static_cast<const uint8_t*>(matrix.data);
  if (!matrix.masks) return {nullptr, data + p * count * 64};
  return {matrix.masks + p * count * 2 * g, data + matrix.offsets[p] * (4 / g)};  // 4 / g bytes a value
}

template <class T>
inline void next(const uint8_t*& masks, const typename T::Element*& v, int ahead, Column (&columns)[T::kGroup]) {
  __builtin_prefetch(reinterpret_cast<const char*>(v) + ahead);
  if (!masks) return T::load(v, columns);
  T::expand(masks, v, columns);
  masks += 2 * T::kGroup;
}

template <int M>
inline void step(const Column& column, const float* x, Column (&sums)[M]) {
  for (int t = 0; t < M; ++t)
    for (int q = 0; q < 4; ++q) sums[t].quarters[q] = vfmaq_n_f32(sums[t].quarters[q], column.quarters[q], x[t]);
}

template <int M>
void store_columns(const Job& job, int64_t p, int64_t first, const Column (&sums)[M]) {
  float rows[kPanelRows];
  for (int t = 0; t < M && first + t < job.tokens; ++t) {
    for (int q = 0; q < 4; ++q) vst1q_f32(rows + 4 * q, sums[t].quarters[q]);
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
  for (; j + kGroups <= count; j += kGroups)
    for (int u = 0; u < kGroups; ++u) {
      next<T>(panel.masks, v, job.walk.ahead, columns);
      for (int i = 0; i < g; ++i, x += M) step<M>(columns[i], x, part[(u * g + i) % kApart]);
    }
  for (; j < count; ++j) {
    next<T>(panel.masks, v, job.walk.ahead, columns);
    for (int i = 0; i < g; ++i, x += M) step<M>(columns[i], x, part[0]);
  }
  for (int k = 1; k < kApart; ++k)
    for (int t = 0; t < M; ++t)
      for (int q = 0; q < 4; ++q) part[0][t].quarters[q] = vaddq_f32(part[0][t].quarters[q], part[k][t].quarters[q]);
  store_columns<M>(job, p, 0, part[0]);
}

template <class T>
void from_cache(const Job& job, int64_t p, float* scratch) {
  constexpr int M = kFloatTile;
  Panel panel = panel_at(*job.matrix, p);
  const int64_t count = groups(T::kValues, job.matrix->cols) * T::kGroup;
  auto v = reinterpret_cast<const typename T::Element*>(panel.data);
  Column columns[T::kGroup];
  for (int64_t i = 0; i < count; i += T::kGroup) {
    next<T>(panel.masks, v, job.walk.ahead, columns);
    for (int k = 0; k < T::kGroup; ++k)
      for (int q = 0; q < 4; ++q) vst1q_f32(scratch + kPanelRows * (i + k) + 4 * q, columns[k].quarters[q]);
  }
  const char* tile = static_cast<const char*>(job.prepared);
  for (int64_t t = 0; t < job.tokens; t += M, tile += interleaved_bytes(T::kValues, job.matrix->cols, M)) {
    const float* x = reinterpret_cast<const float*>(tile);
    Column sums[M] = {};
    for (int64_t i = 0; i < count; ++i) {
      const float* w = scratch + kPanelRows * i;
      step<M>({{vld1q_f32(w), vld1q_f32(w + 4), vld1q_f32(w + 8), vld1q_f32(w + 12)}}, x + i * M, sums);
    }
    store_columns<M>(job, p, t, sums);
  }
}

template <class T>
void float_panel(const Job& job, int64_t p, void* scratch) {
  if (job.tokens > kFloatTile) return from_cache<T>(job, p, static_cast<float*>(scratch));
  switch (tile(T::kValues, job.tokens, job.walk)) {
    case 1: return stream<T, 1>(job, p);
    case 2: return stream<T, 2>(job, p);
  }
  stream<T, kFloatTile>(job, p);
}

// The sums of Q quarters of a panel and one tile of M tokens; `quarter(j, q)` gives group j's four rows by four inputs.
template <int M, int Q, class F>
inline void add_ints(int64_t count, const char* tile, F quarter, int64_t (*exact)[kPanelRows]) {
  const char* x = tile + scales_bytes(M);
  typename Ints::Sum sums[M][Q] = {};
  for (int64_t j = 0; j < count;) {
    const int64_t end = count - j < Ints::kGroupsExact ? count : j + Ints::kGroupsExact;
    for (; j < end; ++j, x += 8 * M) {
      typename Ints::Input inputs[M];
      for (int t = 0; t < M; ++t) inputs[t] = Ints::read(x + 8 * t);
      for (int q = 0; q < Q; ++q) {
        const int8x16_t w = quarter(j, q);
        for (int t = 0; t < M; ++t) Ints::step(sums[t][q], w, inputs[t]);
      }
    }
    for (int t = 0; t < M; ++t)
      for (int q = 0; q < Q; ++q) Ints::empty(sums[t][q], exact[t] + 4 * q);
  }
}

template <int M>
void store_ints(const Job& job, int64_t p, int64_t first, const char* tile, const int64_t (&exact)[M][kPanelRows]) {
  const float* scales = reinterpret_cast<const float*>(tile);
  for (int t = 0; t < M && first + t < job.tokens; ++t) {
    float rows[kPanelRows];
    for (int r = 0; r < kPanelRows; ++r) rows[r] = static_cast<float>(exact[t][r]) * scales[t];
    store(job, p, first + t, rows);
  }
}

template <int M>
void stream_ints(const Job& job, int64_t p) {
  Panel panel = panel_at(*job.matrix, p);
  int64_t exact[M][kPanelRows] = {};
  auto next_quarter = [&](int64_t, int) {
    __builtin_prefetch(panel.data + job.walk.ahead);
    if (!panel.masks) return panel.data += 16, load_quarter(panel.data - 16);
    return panel.masks += 2, expand_quarter(panel.masks - 2, panel.data);
  };
  const char* tile = static_cast<const char*>(job.prepared);
  add_ints<M, 4>(groups(Values::i8, job.matrix->cols), tile, next_quarter, exact);
  store_ints<M>(job, p, 0, tile, exact);
}

// Return a panel as dense bytes: in place, or expanded into `scratch`.
const uint8_t* dense_ints(const Job& job, int64_t p, uint8_t* scratch) {
  Panel panel = panel_at(*job.matrix, p);
  if (!panel.masks) return panel.data;
  const int64_t quarters = groups(Values::i8, job.matrix->cols) * 4;
  for (int64_t i = 0; i < quarters; ++i, panel.masks += 2) {
    __builtin_prefetch(panel.data + job.walk.ahead);
    vst1q_s8(reinterpret_cast<int8_t*>(scratch + 16 * i), expand_quarter(panel.masks, panel.data));
  }
  return scratch;
}

void ints_from_cache(const Job& job, int64_t p, uint8_t* scratch) {
  constexpr int M = kIntTile, Q = Ints::kQuarters;
  const uint8_t* dense = dense_ints(job, p, scratch);
  const int64_t count = groups(Values::i8, job.matrix->cols);
  const char* tile = static_cast<const char*>(job.prepared);
  for (int64_t t = 0; t < job.tokens; t += M, tile += int_tile_bytes(job.matrix->cols, M)) {
    int64_t exact[M][kPanelRows] = {};
    for (int first = 0; first < 4; first += Q) {
      int64_t part[M][kPanelRows] = {};
      add_ints<M, Q>(count, tile, [&](int64_t j, int q) { return load_quarter(dense + 64 * j + 16 * (first + q)); }, part);
      for (int k = 0; k < M; ++k) std::memcpy(exact[k] + 4 * first, part[k], sizeof(int64_t) * 4 * Q);
    }
    store_ints<M>(job, p, t, tile, exact);
  }
}

void int_panel(const Job& job, int64_t p, void* scratch) {
  if (job.tokens > Ints::kStreamed) return ints_from_cache(job, p, static_cast<uint8_t*>(scratch));
  job.tokens < 2 ? stream_ints<1>(job, p) : stream_ints<2>(job, p);
}

void run(const Job& job, int64_t first, int64_t last, void* scratch) {
  if (!covers(job.matrix->values)) return portable_isa().run(job, first, last, scratch);
  for (int64_t p = first; p < last; ++p) switch (job.matrix->values) {
      case Values::f32: float_panel<Float32>(job, p, scratch); break;
      case Values::bf16: float_panel<Bfloat16>(job, p, scratch); break;
      default: int_panel(job, p, scratch);
    }
}

}  // namespace
}  // namespace shears
