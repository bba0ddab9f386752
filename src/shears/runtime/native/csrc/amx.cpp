// AMX: one instruction multiplies a chunk of weights, sixteen groups of a panel, by as many inputs of sixteen tokens. Chunks
// come from memory as they lie, or are expanded by AVX-512 into a buffer; for more tokens than the tile registers have sums
// for, they are kept there. For integers the sums have the bits of the AVX-512 kernels; bf16 sums are added in another order.
#include "avx512_panels.h"

namespace shears {
namespace {

constexpr int kTokens = 16;                     // of a tile
constexpr int kSums = 4;                        // tile registers 0 to 3; 4 holds weights, 5 to 7 inputs
constexpr int64_t kChunkGroups = 16, kChunkBytes = 1024;
constexpr int64_t kBlockChunks = kBlockGroups / kChunkGroups;  // of i4
constexpr size_t kInt4Header = 2 * 4 * kTokens, kInt4BlockBytes = kInt4Header + kBlockChunks * kChunkBytes;

int64_t chunks(Values values, int64_t cols) { return (groups(values, cols) + kChunkGroups - 1) / kChunkGroups; }

// Sums that a tile of tokens needs: i8 multiplies both halves of its inputs.
constexpr int sums_of(Values values) { return values == Values::i8 ? 2 : 1; }
template <class T>
constexpr int kEach = sums_of(T::kGroup == 4 && !T::kInBlocks ? Values::i8 : Values::bf16);

struct alignas(64) TileShape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileShape kShape;

// Eight tile registers of 1 KB while it lives; empty afterwards, so that a switch of threads saves nothing. Not by
// _tile_loadconfig: GCC before 12.4 tells the compiler that it reads 8 bytes of the shape.
class TileRegisters {
 public:
  TileRegisters() { __asm__ volatile("ldtilecfg %0" : : "m"(kShape)); }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
};

// STEP(register of the sums, register of their inputs) for N sums; the intrinsics take numbers only.
#define SHEARS_EACH_SUM(STEP)            \
  if constexpr (N > 0) { STEP(0, 5); }   \
  if constexpr (N > 1) { STEP(1, 6); }   \
  if constexpr (N > 2) { STEP(2, 7); }   \
  if constexpr (N > 3) { STEP(3, 5); }

template <int N>
inline void clear_sums() {
#define SHEARS_CLEAR(SUM, IN) _tile_zero(SUM)
  SHEARS_EACH_SUM(SHEARS_CLEAR)
#undef SHEARS_CLEAR
}

// sums[s] += the inputs of s at `at` times a chunk of weights.
template <bool Floats, int N>
inline void add_chunk(const char* const (&inputs)[N], int64_t at, const char* weights) {
  __asm__ volatile("" ::: "memory");  // the intrinsics do not say that they read memory
  _tile_loadd(4, weights, 64);
#define SHEARS_ADD(SUM, IN)                    \
  _tile_loadd(IN, inputs[SUM] + at, 64);       \
  if constexpr (Floats) _tile_dpbf16ps(SUM, IN, 4); \
  else _tile_dpbssd(SUM, IN, 4)
  SHEARS_EACH_SUM(SHEARS_ADD)
#undef SHEARS_ADD
}

template <int N>
inline void store_sums(char* to) {
#define SHEARS_STORE(SUM, IN) _tile_stored(SUM, to + SUM * kChunkBytes, 64)
  SHEARS_EACH_SUM(SHEARS_STORE)
#undef SHEARS_STORE
}

// The chunks of a panel in order, each of `kChunkBytes`; groups beyond the columns are zeros.
template <class T>
class Chunks {
 public:
  // `buffer` holds two chunks, or where `keep`, all of them.
  Chunks(const Job& job, int64_t p, char* buffer, bool keep)
      : matrix_(*job.matrix), p_(p), ahead_(job.walk.ahead), from_(stream_at<T>(matrix_, p)), buffer_(buffer), keep_(keep) {}

  // Start again, from what was kept if it was.
  void again() {
    known_ = keep_;
    if (!known_) from_ = stream_at<T>(matrix_, p_);
  }

  const char* at(int64_t k) {
    if (known_) return buffer_ + k * kChunkBytes;
    const int64_t left = groups(matrix_.values, matrix_.cols) - k * kChunkGroups, count = left < kChunkGroups ? left : kChunkGroups;
    if (!is_expanded(matrix_) && count == kChunkGroups) {
      const auto* whole = reinterpret_cast<const char*>(from_.v);
      for (int64_t j = 0; j < count; ++j) _mm_prefetch(whole + ahead_ + 64 * j, _MM_HINT_T0);
      from_.v += kChunkBytes / sizeof(typename T::Element);
      return whole;
    }
    char* to = buffer_ + (keep_ ? k : k % 2) * kChunkBytes;
    if constexpr (T::kInBlocks) {
      if (k % kBlockChunks == 0) zeros_ = I4::in_every_byte(I4::zero_points(from_.zeros)), from_.zeros += kPanelRows / 2;
    }
    for (int64_t j = 0; j < count; ++j) {
      _mm_prefetch(reinterpret_cast<const char*>(from_.v) + ahead_, _MM_HINT_T0);
      _mm512_store_si512(to + 64 * j, group());
    }
    for (int64_t j = count; j < kChunkGroups; ++j) _mm512_store_si512(to + 64 * j, _mm512_setzero_si512());
    return to;
  }

 private:
  inline __m512i group() {
    __m512i raw;
    if (matrix_.masks) {
      if constexpr (T::kInBlocks)
        raw = T::expand(from_.masks, from_.v, zeros_);
      else
        raw = T::template expand<true>(from_.masks, from_.v);
      from_.masks += 2 * T::kGroup;
    } else if constexpr (T::kInBlocks) {
      raw = T::nibbles(from_.v);
      from_.v += 32;
    } else {
      raw = load512(from_.v);
      from_.v += 64 / sizeof(typename T::Element);
    }
    return raw;
  }

  const Matrix& matrix_;
  int64_t p_;
  int ahead_;
  Stream<T> from_;
  char* buffer_;
  bool keep_, known_ = false;
  __m512i zeros_ = _mm512_setzero_si512();
};

size_t laid_out_tile_bytes(Values values, int64_t cols, int tile) {
  if (values == Values::f32) return avx512_isa().tile_bytes(values, cols, tile);
  if (values == Values::i4) return static_cast<size_t>(blocks(cols)) * kInt4BlockBytes;
  const size_t header = values == Values::i8 ? 4 * kTokens : 0;  // i8: the tokens' scales
  return header + static_cast<size_t>(sums_of(values) * chunks(values, cols) * kChunkBytes);
}

// Where column i of token t lies among the chunks of its inputs, whose columns are `bytes` wide.
inline int64_t place(int64_t i, int t, int bytes) { return i * bytes / 64 * kChunkBytes + 64 * t + i * bytes % 64; }

void lay_out_token(Values values, const float* x, int64_t cols, int t, char* out) {
  if (values == Values::bf16) {
    for (int64_t i = 0; i < cols; i += 16) {
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes(cols - i), x + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + place(i, t, 2)), rounded);
    }
  } else if (values == Values::i8) {
    float* scales = reinterpret_cast<float*>(out);
    scales[t] = int16_scale(x, cols);
    char *high = out + 4 * kTokens, *low = high + chunks(values, cols) * kChunkBytes;
    split_inputs(x, cols, scales[t], [&](int64_t i, __m512i hi, __m512i lo) {
      store_bytes(high + place(i, t, 1), hi), store_bytes(low + place(i, t, 1), lo);
    });
  } else {
    for (int64_t i = 0; i < cols; i += kBlockInputs, out += kInt4BlockBytes) {
      alignas(64) int8_t rounded[kBlockInputs];
      round_int4_block(x + i, cols - i, rounded, reinterpret_cast<float*>(out)[t], reinterpret_cast<int32_t*>(out)[kTokens + t]);
      for (int64_t j = 0; j < kBlockInputs; j += 64) _mm512_storeu_si512(out + kInt4Header + place(j, t, 1), load512(rounded + j));
    }
  }
}

void lay_out_tile(Values values, const float* x, int64_t cols, int count, int tile, void* out) {
  if (values == Values::f32) return avx512_isa().prepare(values, x, cols, count, tile, out);
  const int64_t beyond = cols % (kChunkGroups * group_size(values));  // columns of a chunk that is not full
  if (count < tile || beyond) __builtin_memset(out, 0, laid_out_tile_bytes(values, cols, tile));
  for (int t = 0; t < count; ++t) lay_out_token(values, x + t * cols, cols, t, static_cast<char*>(out));
}

int walks(Values values, bool sparse, int64_t tokens, Walk* out) {
  if (values == Values::f32) return avx512_isa().walks(values, sparse, tokens, out);
  out[0] = {1, true, kTokens, 6144};
  out[1] = {1, true, kTokens, 2048};
  return 2;
}

int tile(Values values, int64_t tokens, const Walk& walk) { return values == Values::f32 ? avx512_isa().tile(values, tokens, walk) : kTokens; }

bool are_kept(const Matrix& matrix, int64_t tokens) {
  return is_expanded(matrix) && tokens > kTokens * kSums / sums_of(matrix.values);
}

size_t scratch_bytes(const Matrix& matrix, int64_t tokens, const Walk& walk) {
  if (matrix.values == Values::f32) return avx512_isa().scratch_bytes(matrix, tokens, walk);
  return static_cast<size_t>(kChunkBytes * (are_kept(matrix, tokens) ? chunks(matrix.values, matrix.cols) : 2));
}

struct Tokens {
  const char* tile;  // laid out
  int64_t first, count;
};

// The tokens of a tile of the job.
Tokens tokens_at(const Job& job, int64_t tile) {
  const size_t stride = laid_out_tile_bytes(job.matrix->values, job.matrix->cols, kTokens);
  const int64_t first = tile * kTokens, left = job.tokens - first;
  return {static_cast<const char*>(job.prepared) + stride * static_cast<size_t>(tile), first, left < kTokens ? left : kTokens};
}

// A panel by the tiles of tokens from `first` on, with N sums.
template <class T, int N>
void add_panel(const Job& job, int64_t p, int64_t first, Chunks<T>& weights) {
  constexpr int each = kEach<T>;
  const int64_t count = chunks(job.matrix->values, job.matrix->cols);
  const char* inputs[N];
  for (int s = 0; s < N; ++s) inputs[s] = tokens_at(job, first + s / each).tile + (each == 2 ? 4 * kTokens + s % 2 * count * kChunkBytes : 0);
  clear_sums<N>();
  for (int64_t k = 0; k < count; ++k) add_chunk<each == 1>(inputs, k * kChunkBytes, weights.at(k));
  alignas(64) char sums[N * kChunkBytes];
  store_sums<N>(sums);
  for (int s = 0; s < N; s += each) {
    const Tokens tokens = tokens_at(job, first + s / each);
    const char* own = sums + s * kChunkBytes;
    for (int64_t t = 0; t < tokens.count; ++t) {
      __m512 sum = _mm512_load_ps(own + 64 * t);
      if constexpr (each == 2) {
        const __m512 hi = _mm512_cvtepi32_ps(load512(own + 64 * t)), lo = _mm512_cvtepi32_ps(load512(own + kChunkBytes + 64 * t));
        sum = _mm512_mul_ps(_mm512_fmadd_ps(hi, _mm512_set1_ps(256.0f), lo), _mm512_set1_ps(reinterpret_cast<const float*>(tokens.tile)[t]));
      }
      store_panel(job, p, tokens.first + t, sum);
    }
  }
}

// The same for i4: blocks are added in their order in fp32.
template <int N>
void add_int4_panel(const Job& job, int64_t p, int64_t first, Chunks<I4>& weights) {
  const Matrix& matrix = *job.matrix;
  const int64_t count = chunks(matrix.values, matrix.cols);
  Stream<I4> from = stream_at<I4>(matrix, p);
  Tokens tokens[N];
  const char* inputs[N];
  alignas(64) float sums[N][kTokens][kPanelRows] = {};
  for (int s = 0; s < N; ++s) tokens[s] = tokens_at(job, first + s), inputs[s] = tokens[s].tile + kInt4Header;
  for (int64_t k = 0, at = 0; k < count; at += kInt4BlockBytes) {
    clear_sums<N>();
    for (int64_t c = 0; c < kBlockChunks && k < count; ++c, ++k) add_chunk<false>(inputs, at + c * kChunkBytes, weights.at(k));
    alignas(64) char parts[N * kChunkBytes];
    store_sums<N>(parts);
    const __m512 scales = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from.scales)));
    const __m512i zeros = I4::zero_points(from.zeros);
    from.scales += kPanelRows, from.zeros += kPanelRows / 2;
    for (int s = 0; s < N; ++s) {
      const auto* input_scales = reinterpret_cast<const float*>(tokens[s].tile + at);
      const auto* less = reinterpret_cast<const int32_t*>(tokens[s].tile + at) + kTokens;
      for (int64_t t = 0; t < tokens[s].count; ++t) {
        const __m512i exact = _mm512_dpwssd_epi32(load512(parts + s * kChunkBytes + 64 * t), zeros, _mm512_set1_epi32(less[t]));
        const __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_set1_ps(input_scales[t]));
        _mm512_store_ps(sums[s][t], _mm512_fmadd_ps(part, scales, _mm512_load_ps(sums[s][t])));
      }
    }
  }
  for (int s = 0; s < N; ++s)
    for (int64_t t = 0; t < tokens[s].count; ++t) store_panel(job, p, tokens[s].first + t, _mm512_load_ps(sums[s][t]));
}

template <class T, int N>
void add_tiles(const Job& job, int64_t p, int64_t first, Chunks<T>& weights) {
  if constexpr (T::kInBlocks)
    add_int4_panel<N>(job, p, first, weights);
  else
    add_panel<T, N * kEach<T>>(job, p, first, weights);
}

template <class T>
void run_values(const Job& job, int64_t first, int64_t last, void* scratch) {
  const TileRegisters registers;
  constexpr int64_t most = kSums / kEach<T>;
  const int64_t tiles = (job.tokens + kTokens - 1) / kTokens;
  for (int64_t p = first; p < last; ++p) {
    Chunks<T> weights(job, p, static_cast<char*>(scratch), are_kept(*job.matrix, job.tokens));
    for (int64_t t = 0; t < tiles; t += most, weights.again()) {
      const int64_t count = tiles - t < most ? tiles - t : most;
      if (count == 1) add_tiles<T, 1>(job, p, t, weights);
      if (count == 2) add_tiles<T, 2>(job, p, t, weights);
      if constexpr (most == 4) {
        if (count == 3) add_tiles<T, 3>(job, p, t, weights);
        if (count == 4) add_tiles<T, 4>(job, p, t, weights);
      }
    }
  }
}

void run(const Job& job, int64_t first, int64_t last, void* scratch) {
  switch (job.matrix->values) {
    case Values::f32: return avx512_isa().run(job, first, last, scratch);
    case Values::bf16: return run_values<Bf16>(job, first, last, scratch);
    case Values::i8: return run_values<I8>(job, first, last, scratch);
    case Values::i4: return run_values<I4>(job, first, last, scratch);
  }
}

}  // namespace

const Isa& amx_isa() {
  static const Isa table{"amx", walks, tile, laid_out_tile_bytes, lay_out_tile, scratch_bytes, run};
  return table;
}

}  // namespace shears
