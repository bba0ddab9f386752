#include "isa.h"

#include <atomic>
#include <cstring>

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

}  // namespace

const Isa* find_isa(const char* name) {
#ifdef SHEARS_AVX512
  if (!std::strcmp(name, "avx512") && has_avx512()) return &avx512_isa();
#endif
#ifdef SHEARS_AVX2
  if (!std::strcmp(name, "avx2") && has_avx2()) return &avx2_isa();
#endif
  return std::strcmp(name, "portable") ? nullptr : &portable_isa();
}

namespace {

const Isa* fastest() {
  const Isa* wide = find_isa("avx512");
  const Isa* narrow = find_isa("avx2");
  return wide ? wide : narrow ? narrow : &portable_isa();
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

Features features() { return {isa().name, has_avx2(), has_avx512()}; }

}  // namespace shears
