// How fast memory can be read: the yardstick of benchmarks, not used by any product.
#pragma once
#include <cstdint>

#include "pool.h"

namespace shears {

// Read `bytes` (a multiple of 128) and return the sum of their 64-bit words, so that no read can be left out.
uint64_t read_memory(const void* data, int64_t bytes, Pool& pool);

}  // namespace shears
