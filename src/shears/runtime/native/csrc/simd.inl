// The compiler's vectors, as wide as those of the instruction set that this file is compiled for.
//
// Included inside `namespace shears::SHEARS_OPS { namespace { ... } }`, so that no two instruction sets share a
// function; for the same reason it uses only integer types and memcpy of the standard library.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Vec = float __attribute__((vector_size(kLanes * 4)));
using Ints = int32_t __attribute__((vector_size(kLanes * 4)));
using AnyVec = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using Halves = uint16_t __attribute__((vector_size(kLanes * 2)));
using AnyHalves = uint16_t __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const AnyVec*>(p); }

/// A bf16 number is the upper half of an fp32 number. Uses intrinsics where they exist: GCC 12 widens in two halves.
inline Vec load(const uint16_t* p) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return reinterpret_cast<Vec>(_mm512_slli_epi32(wide, 16));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return reinterpret_cast<Vec>(_mm256_slli_epi32(wide, 16));
#elif defined(SHEARS_OPS_NEON)
  return reinterpret_cast<Vec>(vshll_n_u16(vld1_u16(p), 16));
#else
  const Halves raw = *reinterpret_cast<const AnyHalves*>(p);
  return reinterpret_cast<Vec>(__builtin_convertvector(raw, Ints) << 16);
#endif
}

inline void store(float* p, Vec v) { *reinterpret_cast<AnyVec*>(p) = v; }

inline Vec all(float value) { return value - Vec{}; }

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

inline float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

inline float largest(Vec v) {
  float top = v[0];
  for (int i = 1; i < kLanes; ++i) top = top > v[i] ? top : v[i];
  return top;
}

/// exp(x) with a relative error below 3e-7; 0 below -87. Cody and Waite's reduction, a polynomial of degree 6.
inline Vec exponential(Vec x) {
  const Vec low = all(-87.0f), high = all(88.0f);
  Vec y = x < low ? low : x;
  y = y > high ? high : y;
  const Vec shifted = y * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(y / ln 2)
  const Vec n = shifted - 12582912.0f;
  const Vec r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = r * (1.0f / 720) + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints exponent = (reinterpret_cast<Ints>(shifted) - 0x4B400000) << 23;
  const Vec result = reinterpret_cast<Vec>(reinterpret_cast<Ints>(p) + exponent);
  return x < low ? Vec{} : result;
}

template <class T>
inline T smaller_of(T a, T b) {
  return b < a ? b : a;
}

template <class T>
inline T larger_of(T a, T b) {
  return a < b ? b : a;
}

inline void fill(float* begin, float* end, float value) {
  for (; begin < end; ++begin) *begin = value;
}

inline float to_float(float x) { return x; }

inline float to_float(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void assign(float& target, float x) { target = x; }

/// Rounds to nearest, ties to even; NaN stays NaN.
inline void assign(uint16_t& target, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  target = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
