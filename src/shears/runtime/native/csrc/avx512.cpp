// AVX-512 with VBMI2, BF16 and VNNI. For up to a tile of tokens, kept weights are expanded in registers as they stream
// from memory; for more tokens, a panel is expanded once into the cache and multiplied tile by tile.
#include "avx512_panels.h"

namespace shears {
namespace {

// Tokens for which two panels can be multiplied at the same time: their sums must fit the registers.
template <class T>
constexpr int kMaxPaired = T::kMaxTile / 2;

constexpr int kTiles[] = {1, 2, 3, 4, 6, 8, 12, 16};

int max_tile(Values values) { return values == Values::i8 ? I8::kMaxTile : F32::kMaxTile; }

int walks(Values values, bool sparse, int64_t tokens, Walk* out) {
  const int widest = max_tile(values), paired = widest / 2;
  int count = 0;
  if (tokens > paired) {
    out[count++] = {1, true, widest, 12288};
    out[count++] = {1, true, widest, 6144};
    out[count++] = {2, true, paired, 6144};
    return count;
  }
  out[count++] = {2, true, widest, 6144};
  out[count++] = {2, true, widest, 12288};
  out[count++] = {2, true, widest, 0};
  out[count++] = {1, true, widest, 6144};
  out[count++] = {1, true, widest, 12288};
  out[count++] = {1, true, widest, 2048};
  if (!sparse || values == Values::i4) return count;
  out[count++] = {2, false, widest, 0};
  out[count++] = {2, false, widest, 6144};
  out[count++] = {1, false, widest, 6144};
  return count;
}

int tile(Values values, int64_t tokens, const Walk& walk) {
  const int64_t tiles = (tokens + walk.tile - 1) / walk.tile, even = (tokens + tiles - 1) / tiles;
  for (int width : kTiles)
    if (width >= even) return width;
  return max_tile(values);
}

size_t scratch_bytes(const Matrix& matrix, int64_t tokens, const Walk& walk) {
  return is_expanded(matrix) && tokens > walk.tile ? panel_bytes(matrix) * static_cast<size_t>(walk.panels) : 0;
}

// How groups of weights are read: all of them as they lie, or expanded, with the load in a register or folded into the
// expansion, and kept for the tiles that follow, which read `whole` groups. Dense i4 weights are kept in bytes, too.
enum class Read { dense, folded, in_register, keeping, keeping_dense, whole };

template <class T, Read R>
inline __m512i next(Stream<T>& from) {
  if constexpr (R == Read::dense || R == Read::whole) {
    const __m512i raw = load512(from.v);
    from.v += 64 / sizeof(typename T::Element);
    return raw;
  }
  const __m512i raw = T::template expand<R != Read::folded>(from.masks, from.v);
  from.masks += 2 * T::kGroup;
  if constexpr (R == Read::keeping) {
    _mm512_store_si512(from.expanded, raw);
    from.expanded += 64;
  }
  return raw;
}

template <Read R>
inline __m512i next_bytes(Stream<I4>& from, __m512i zeros) {
  if constexpr (R == Read::whole) {
    from.v += 64;
    return _mm512_load_si512(from.v - 64);
  }
  __m512i raw;
  if constexpr (R == Read::dense || R == Read::keeping_dense) {
    raw = I4::nibbles(from.v);
    from.v += 32;
  } else {
    raw = I4::expand(from.masks, from.v, zeros);
    from.masks += 8;
  }
  if constexpr (R == Read::keeping || R == Read::keeping_dense) {
    _mm512_store_si512(from.expanded, raw);
    from.expanded += 64;
  }
  return raw;
}

// The sums of a block of i4 weights, added to those of the blocks before. `count` is its number of groups, 32 in a whole
// block.
template <Read R, int M, int P, bool Whole>
inline void add_block(Stream<I4> (&from)[P], int64_t count, const Int4Block& x, int64_t ahead, __m512 (&sums)[P][M]) {
  constexpr int kFree = 16 / (M * P), kChains = kFree >= 4 ? 4 : kFree >= 2 ? 2 : 1;  // integers: their order changes no bit
  __m512i part[kChains][P][M], zero_bytes[P];
  for (auto& chain : part)
    for (auto& panel : chain)
      for (auto& sum : panel) sum = _mm512_setzero_si512();
#pragma GCC unroll 2
  for (int p = 0; p < P; ++p) {
    const __m512i zeros = I4::zero_points(from[p].zeros);
    zero_bytes[p] = I4::in_every_byte(zeros);
#pragma GCC unroll 16
    for (int t = 0; t < M; ++t) part[0][p][t] = _mm512_dpwssd_epi32(part[0][p][t], zeros, _mm512_set1_epi32(x.less[t]));
  }
  auto group = [&](int u, const int32_t* input) __attribute__((always_inline)) {
    __m512i w[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) w[p] = next_bytes<R>(from[p], zero_bytes[p]);
#pragma GCC unroll 16
    for (int t = 0; t < M; ++t)
      if constexpr (P == 1) {
        add_fours(part[u][0][t], w[0], input + t);
      } else {
        const __m512i shared = _mm512_set1_epi32(input[t]);
        add_fours(part[u][0][t], w[0], shared);
        add_fours(part[u][1][t], w[1], shared);
      }
  };
  int64_t j = 0;
  for (; j + kChains <= count; j += kChains) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      _mm_prefetch(reinterpret_cast<const char*>(from[p].v) + ahead, _MM_HINT_T0);
      if constexpr (R == Read::in_register) _mm_prefetch(reinterpret_cast<const char*>(from[p].masks) + ahead, _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (int u = 0; u < kChains; ++u) group(u, x.inputs + (j + u) * M);
  }
  if constexpr (!Whole)
    for (; j < count; ++j) group(0, x.inputs + j * M);
#pragma GCC unroll 2
  for (int p = 0; p < P; ++p) {
    const __m512 scales = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from[p].scales)));
    from[p].scales += kPanelRows, from[p].zeros += kPanelRows / 2;
#pragma GCC unroll 16
    for (int t = 0; t < M; ++t) {
      __m512i exact = part[0][p][t];
#pragma GCC unroll 4
      for (int u = 1; u < kChains; ++u) exact = _mm512_add_epi32(exact, part[u][p][t]);
      const __m512 parts = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_set1_ps(x.scales[t]));
      sums[p][t] = _mm512_fmadd_ps(parts, scales, sums[p][t]);
    }
  }
}

template <Read R, int M, int P>
inline void panel_sums_int4(Stream<I4> (&from)[P], int64_t count, const char* x, int64_t ahead, __m512 (&sums)[P][M]) {
  for (auto& panel : sums)
    for (auto& sum : panel) sum = _mm512_setzero_ps();
  for (; count >= kBlockGroups; count -= kBlockGroups, x += int4_block_bytes(M))
    add_block<R, M, P, true>(from, kBlockGroups, int4_block(x, M), ahead, sums);
  if (count > 0) add_block<R, M, P, false>(from, count, int4_block(x, M), ahead, sums);
}

// The sums of P panels and one tile of M tokens, over all groups. With few tokens, a token has several sums, so that
// no addition waits for the one before. Their number does not depend on P: a panel's sums have the same bits in any
// company.
template <class T, Read R, int M, int P>
inline void panel_sums(Stream<T> (&from)[P], int64_t count, const typename T::Input* x, int64_t ahead,
                       typename T::Sum (&sums)[P][M]) {
  constexpr int kChains = M == 1 ? 4 : M <= 3 ? 2 : 1;
  typename T::Sum part[kChains][P][M];
  for (auto& chain : part)
    for (auto& panel : chain)
      for (auto& sum : panel) sum = T::zero();
  auto group = [&](int u, const typename T::Input* input) __attribute__((always_inline)) {
    typename T::Weights w[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) w[p] = T::weights(next<T, R>(from[p]));
#pragma GCC unroll 16
    for (int t = 0; t < M; ++t)
      if constexpr (P == 1) {
        T::step(part[u][0][t], w[0], input + t);
      } else {
        const auto shared = T::shared(input + t);
        T::step(part[u][0][t], w[0], shared);
        T::step(part[u][1][t], w[1], shared);
      }
  };
  int64_t j = 0;
  for (; j + kChains <= count; j += kChains) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) _mm_prefetch(reinterpret_cast<const char*>(from[p].v) + ahead, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int u = 0; u < kChains; ++u) group(u, x + (j + u) * M);
  }
  for (; j < count; ++j) group(0, x + j * M);
#pragma GCC unroll 2
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int t = 0; t < M; ++t) {
      sums[p][t] = part[0][p][t];
#pragma GCC unroll 4
      for (int u = 1; u < kChains; ++u) T::merge(sums[p][t], part[u][p][t]);
    }
}

// Multiply one tile of tokens, from `first` on, by panels p, p + apart, ...
template <class T, Read R, int M, int P>
void multiply_tile(const Job& job, int64_t p, int64_t apart, int64_t first, const char* tile, Stream<T> (&from)[P]) {
  typename T::Sum sums[P][M];
  const int64_t count = (job.matrix->cols + T::kGroup - 1) / T::kGroup;
  const auto* x = reinterpret_cast<const typename T::Input*>(tile + T::header(M));
  if constexpr (T::kInBlocks)
    panel_sums_int4<R, M, P>(from, count, x, job.walk.ahead, sums);
  else
    panel_sums<T, R, M, P>(from, count, x, job.walk.ahead, sums);
  for (int q = 0; q < P; ++q)
    for (int t = 0; t < M && first + t < job.tokens; ++t) store_panel(job, p + q * apart, first + t, T::result(sums[q][t], tile, M, t));
}

// All tiles of tokens by P neighbouring panels. The first tile expands them and keeps them in the cache for the others:
// the expansion hides behind its products.
template <class T, int M, int P>
void multiply_tiles(const Job& job, int64_t p, char* scratch) {
  const Matrix& matrix = *job.matrix;
  const size_t stride = laid_out_bytes(matrix.values, matrix.cols, M);
  Stream<T> whole[P], from[P];
  for (int q = 0; q < P; ++q) {
    from[q] = whole[q] = stream_at<T>(matrix, p + q);
    from[q].expanded = scratch + panel_bytes(matrix) * static_cast<size_t>(q);
    if (is_expanded(matrix)) whole[q].v = reinterpret_cast<const typename T::Element*>(from[q].expanded);
  }
  const char* tile = static_cast<const char*>(job.prepared);
  int64_t t = 0;
  if (is_expanded(matrix)) {
    if (matrix.masks)
      multiply_tile<T, Read::keeping, M, P>(job, p, 1, 0, tile, from);
    else if constexpr (T::kInBlocks)
      multiply_tile<T, Read::keeping_dense, M, P>(job, p, 1, 0, tile, from);
    t = M, tile += stride;
  }
  for (; t < job.tokens; t += M, tile += stride) {
    for (int q = 0; q < P; ++q) from[q] = whole[q];
    multiply_tile<T, Read::whole, M, P>(job, p, 1, t, tile, from);
  }
}

template <class T, int M>
void run_tiles(const Job& job, int64_t first, int64_t last, char* scratch) {
  int64_t p = first;
  if constexpr (M <= kMaxPaired<T>)
    for (; job.walk.panels == 2 && p + 2 <= last; p += 2) multiply_tiles<T, M, 2>(job, p, scratch);
  for (; p < last; ++p) multiply_tiles<T, M, 1>(job, p, scratch);
}

// One tile of tokens: weights are used as they come from memory. Two panels that are multiplied at the same time lie far
// apart: each is a long stream, which continues where its previous panel ended.
template <class T, Read R, int M>
void run_streams(const Job& job, int64_t first, int64_t last) {
  const Matrix& matrix = *job.matrix;
  const char* tile = static_cast<const char*>(job.prepared);
  int64_t p = first;
  if constexpr (M <= kMaxPaired<T>) {
    const int64_t apart = job.walk.panels == 2 ? (last - first) / 2 : 0;
    for (; p < first + apart; ++p) {
      Stream<T> from[] = {stream_at<T>(matrix, p), stream_at<T>(matrix, p + apart)};
      multiply_tile<T, R, M, 2>(job, p, apart, 0, tile, from);
    }
    p += apart;
  }
  for (; p < last; ++p) {
    Stream<T> from[] = {stream_at<T>(matrix, p)};
    multiply_tile<T, R, M, 1>(job, p, 0, 0, tile, from);
  }
}

template <class T, int M>
void run_panels(const Job& job, int64_t first, int64_t last, void* scratch) {
  if (job.tokens > M) return run_tiles<T, M>(job, first, last, static_cast<char*>(scratch));
  if (!job.matrix->masks) return run_streams<T, Read::dense, M>(job, first, last);
  if (job.walk.in_register || T::kInBlocks) return run_streams<T, Read::in_register, M>(job, first, last);
  run_streams<T, Read::folded, M>(job, first, last);
}

template <class T>
void run_values(const Job& job, int64_t first, int64_t last, void* scratch) {
  switch (tile(job.matrix->values, job.tokens, job.walk)) {
    case 1: return run_panels<T, 1>(job, first, last, scratch);
    case 2: return run_panels<T, 2>(job, first, last, scratch);
    case 3: return run_panels<T, 3>(job, first, last, scratch);
    case 4: return run_panels<T, 4>(job, first, last, scratch);
    case 6: return run_panels<T, 6>(job, first, last, scratch);
    case 8: return run_panels<T, 8>(job, first, last, scratch);
  }
  if constexpr (T::kMaxTile > 8) {
    if (tile(job.matrix->values, job.tokens, job.walk) == 12) return run_panels<T, 12>(job, first, last, scratch);
    return run_panels<T, 16>(job, first, last, scratch);
  }
}

void run(const Job& job, int64_t first, int64_t last, void* scratch) {
  switch (job.matrix->values) {
    case Values::f32: return run_values<F32>(job, first, last, scratch);
    case Values::bf16: return run_values<Bf16>(job, first, last, scratch);
    case Values::i8: return run_values<I8>(job, first, last, scratch);
    case Values::i4: return run_values<I4>(job, first, last, scratch);
  }
}

}  // namespace

const Isa& avx512_isa() {
  static const Isa table{"avx512", walks, tile, laid_out_bytes, lay_out, scratch_bytes, run};
  return table;
}

}  // namespace shears
