// Included by one file per instruction set, which defines SHEARS_OPS, the namespace: ops_avx512, ops_avx2, ops_neon or
// ops_portable.
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(SHEARS_OPS_NEON)
#include <arm_neon.h>
#endif

#include "ops.h"

namespace shears::SHEARS_OPS {
namespace {
#include "simd.inl"
#include "ops.inl"
#include "attention.inl"
}  // namespace

extern const Ops kOps;
const Ops kOps{rms_norm, add, swiglu, geglu, gate, convolve, delta, raise, rotate, scale, remember, attend, widen};

}  // namespace shears::SHEARS_OPS
