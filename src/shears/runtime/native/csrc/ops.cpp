#include "ops.h"

#include <cstring>

#include "isa.h"

namespace shears {

const Ops& ops() {
  [[maybe_unused]] const char* name = isa().name;
#ifdef SHEARS_AVX512
  if (!std::strcmp(name, "avx512") || !std::strcmp(name, "amx")) return ops_avx512::kOps;
#endif
#ifdef SHEARS_AVX2
  if (!std::strcmp(name, "avx2")) return ops_avx2::kOps;
#endif
#ifdef SHEARS_NEON
  if (!std::strncmp(name, "neon", 4)) return ops_neon::kOps;  // neon_dot, too
#endif
  return ops_portable::kOps;
}

}  // namespace shears
