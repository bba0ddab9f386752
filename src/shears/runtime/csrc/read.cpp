#include "read.h"

#include <algorithm>
#include <atomic>
#include <numeric>

namespace shears {
namespace {

constexpr int64_t kPiece = 1 << 20, kLine = 64, kAhead = 6144;  // bytes

uint64_t sum_words(const char* data, int64_t bytes) {
  uint64_t sums[8] = {};
  for (int64_t at = 0; at + kLine <= bytes; at += kLine) {
#if defined(__GNUC__)
    __builtin_prefetch(data + at + kAhead);
#endif
    const uint64_t* words = reinterpret_cast<const uint64_t*>(data + at);
    for (int k = 0; k < 8; ++k) sums[k] += words[k];
  }
  return std::accumulate(sums, sums + 8, uint64_t{0});
}

}  // namespace

uint64_t read_memory(const void* data, int64_t bytes, Pool& pool) {
  std::atomic<uint64_t> sum{0};
  pool.parallel_for((bytes + kPiece - 1) / kPiece, [&](int64_t piece) {
    sum += sum_words(static_cast<const char*>(data) + piece * kPiece, std::min(kPiece, bytes - piece * kPiece));
  });
  return sum;
}

}  // namespace shears
