// Measures how fast memory can be read, for benchmarks; no product uses it.
#pragma once
#include <cstdint>

#include "pool.h"

namespace shears {

// Read `bytes` (a multiple of 128) and return the sum of their 64-bit words, so that the compiler cannot omit a read.
uint64_t read_memory(const void* data, int64_t bytes, Pool& pool);

}  // namespace shears
