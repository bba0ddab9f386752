// Which walk each kind of product takes on this machine, and the measurements that decide it.
//
// No choice changes a bit of a result but the choice of an instruction set, which is made only where it is clearly faster.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "isa.h"
#include "pool.h"

namespace shears {

// Numbers of tokens that share a choice: 1, 2, 3 to 4, 5 to 8, 9 to 16, more.
constexpr int kTokenClasses = 6;
int token_class(int64_t tokens);
int64_t tokens_of(int token_class);  // the number that stands for a class in a measurement

struct Choice {
  const Isa* isa;
  Walk walk;
};

// What a product takes: what `choose` set, else the default walk of the instruction set in use.
Choice choice_for(Values, bool sparse, int64_t tokens);

// Names such as "avx512 panels=2 load=register tile=16 ahead=6144", the default first.
std::vector<std::string> candidates(Values, bool sparse, int token_class);
std::string chosen(Values, bool sparse, int token_class);
bool choose(Values, bool sparse, int token_class, const std::string& name);  // false: no such candidate here
void forget_choices();

// Seconds per weight (not per kept weight) of every candidate, multiplying by a random weight of `bytes` bytes, half of it
// zeros where it is sparse, within about `seconds`. One thread.
std::vector<std::vector<std::pair<std::string, double>>> time_candidates(Values, bool sparse, size_t bytes, double seconds);

struct Speed {
  double seconds_per_weight;   // of a product
  double bytes_per_weight;     // that it reads: masks and kept values
  double memory_bytes_per_second;  // of reading alone, measured between the products
};

// The speed of products by a random weight, as `choice_for` walks it, on the threads of a pool. Medians of `turns` turns.
Speed measure_speed(Values, bool sparse, int64_t tokens, size_t bytes, int turns, Pool& pool);

}  // namespace shears
