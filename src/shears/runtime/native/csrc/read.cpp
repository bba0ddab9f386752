#include "read.h"

#include <algorithm>
#include <atomic>
#include <numeric>

namespace shears {
namespace {

constexpr int64_t kPiece = 4 << 20, kLine = 64;  // bytes

// Reads both halves at once: two streams are faster than one, and prefetches of our own make them slower.
uint64_t sum_words(const char* data, int64_t bytes) {
  uint64_t sums[16] = {};
  const int64_t half = bytes / 2 / kLine * kLine;
  for (int64_t at = 0; at < half; at += kLine) {
    const auto* one = reinterpret_cast<const uint64_t*>(data + at);
    const auto* other = reinterpret_cast<const uint64_t*>(data + half + at);
    for (int k = 0; k < 8; ++k) sums[k] += one[k], sums[8 + k] += other[k];
  }
  return std::accumulate(sums, sums + 16, uint64_t{0});
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
