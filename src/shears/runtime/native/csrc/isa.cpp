#include "isa.h"

#include <atomic>
#include <cstring>
#if defined(SHEARS_NEON_DOT) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(SHEARS_NEON_DOT) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(SHEARS_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace shears {
namespace {

bool has_avx2() {
#ifdef SHEARS_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("popcnt");
#else
  return false;
#endif
}

bool has_avx512() {
#ifdef SHEARS_AVX512
  return __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

// Linux gives a process the tile registers when it asks for them, and threads that exist already have them from then on.
bool ask_for_tiles() {
#if defined(SHEARS_AMX) && defined(__linux__)
  constexpr unsigned kTiles = 1u << 24, kInts = 1u << 25, kFloats = 1u << 22;  // of leaf 7, edx
  constexpr long kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA; old headers do not name them
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  return (edx & kTiles) && (edx & kInts) && (edx & kFloats) && syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  static const bool has = has_avx512() && ask_for_tiles();
  return has;
}

bool has_neon() {
#ifdef SHEARS_NEON
  return true;  // a part of every 64-bit ARM processor
#else
  return false;
#endif
}

bool has_neon_dot() {
#if defined(SHEARS_NEON_DOT) && defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP; old headers do not name it
  return getauxval(AT_HWCAP) & kDotProduct;
#elif defined(SHEARS_NEON_DOT) && defined(__APPLE__)
  int has = 0;
  size_t bytes = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &bytes, nullptr, 0) == 0 && has;
#else
  return false;
#endif
}

}  // namespace

const Isa* find_isa(const char* name) {
#ifdef SHEARS_AMX
  if (!std::strcmp(name, "amx") && has_amx()) return &amx_isa();
#endif
#ifdef SHEARS_AVX512
  if (!std::strcmp(name, "avx512") && has_avx512()) return &avx512_isa();
#endif
#ifdef SHEARS_AVX2
  if (!std::strcmp(name, "avx2") && has_avx2()) return &avx2_isa();
#endif
#ifdef SHEARS_NEON_DOT
  if (!std::strcmp(name, "neon_dot") && has_neon_dot()) return &neon_dot_isa();
#endif
#ifdef SHEARS_NEON
  if (!std::strcmp(name, "neon")) return &neon_isa();
#endif
  return std::strcmp(name, "portable") ? nullptr : &portable_isa();
}

namespace {

const Isa* fastest() {
  constexpr const char* kNames[] = {"avx512", "avx2", "neon_dot", "neon"};
  for (const char* name : kNames)
    if (const Isa* one = find_isa(name)) return one;
  return &portable_isa();
}

std::atomic<const Isa*> chosen{nullptr};
std::atomic<bool> forced{false};

}  // namespace

const Isa& isa() {
  const Isa* current = chosen.load(std::memory_order_relaxed);
  if (!current) chosen = current = fastest();
  return *current;
}

bool choose_isa(const char* name) {
  const Isa* wanted = find_isa(name);
  if (wanted) chosen = wanted, forced = true;
  return wanted != nullptr;
}

bool isa_is_forced() { return forced.load(std::memory_order_relaxed); }

Features features() { return {isa().name, has_avx2(), has_avx512(), has_amx(), has_neon(), has_neon_dot()}; }

}  // namespace shears
