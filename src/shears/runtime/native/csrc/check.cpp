// A program to run under sanitizers and on processors without Python (docs/internals/kernels.md): compares products of many shapes,
// on every instruction set of this machine or on those that it is given, with sums in double, checks what test_kernels.py
// and the decoder promise, and runs jobs of the pool.
//
// Every buffer has exactly the length that matrix.h requires, so that AddressSanitizer reports the first read beyond
// it.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <list>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bf16.h"
#include "decoder.h"
#include "isa.h"
#include "kernels.h"
#include "layout.h"
#include "pack.h"
#include "tuning.h"

using namespace shears;

namespace {

std::mt19937 generator(0);

float normal() { return std::normal_distribution<float>()(generator); }

struct Weight {
  Values values;
  int64_t rows, cols;
  std::vector<double> dense;  // [rows, cols], scales applied
  std::vector<uint8_t> data, masks;
  std::vector<int64_t> offsets;
  std::vector<float> scales;
  std::vector<uint16_t> block_scales;
  std::vector<uint8_t> zeros;

  Matrix matrix() const {
    return {values, rows, cols, masks.empty() ? nullptr : masks.data(), data.data(), masks.empty() ? nullptr : offsets.data(),
            scales.empty() ? nullptr : scales.data(), block_scales.data(), zeros.data()};
  }
};

// Append a value to `data` in the weight's number format; return the number that it stands for.
double append(Weight& weight, float value) {
  const auto put = [&](const void* from, size_t bytes) {
    weight.data.insert(weight.data.end(), static_cast<const uint8_t*>(from), static_cast<const uint8_t*>(from) + bytes);
  };
  if (weight.values == Values::f32) return put(&value, 4), value;
  if (weight.values == Values::i8) {
    const int8_t step = static_cast<int8_t>(std::fmax(-127.0f, std::fmin(127.0f, std::round(40.0f * value))));
    return put(&step, 1), step;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t upper = static_cast<uint16_t>(bits >> 16);
  bits = uint32_t{upper} << 16;
  std::memcpy(&value, &bits, 4);
  return put(&upper, 2), value;
}

// Random scales and zero points of the rows and blocks of i4: 0.04 is no fp16 number, but near one.
void add_blocks(Weight& weight) {
  const int64_t count = panels(weight.matrix()) * blocks(weight.cols);
  for (int64_t k = 0; k < count * kPanelRows; ++k) weight.block_scales.push_back(static_cast<uint16_t>(0x2000 + generator() % 0x800));
  for (int64_t k = 0; k < count * kPanelRows / 2; ++k) weight.zeros.push_back(static_cast<uint8_t>(generator()));
  weight.block_scales.shrink_to_fit(), weight.zeros.shrink_to_fit();
}

// Append a random nibble, the `number`th of its group; return the number that it stands for.
double append_nibble(Weight& weight, int64_t row, int64_t col, int number) {
  const auto nibble = static_cast<uint8_t>(generator() & 15);
  if (number % 2)
    weight.data.back() |= static_cast<uint8_t>(nibble << 4);
  else
    weight.data.push_back(nibble);
  const auto block = static_cast<size_t>(row / kPanelRows * blocks(weight.cols) + col / kBlockInputs), r = static_cast<size_t>(row % kPanelRows);
  return static_cast<double>(from_half(weight.block_scales[block * kPanelRows + r])) * (nibble - zero_point(weight.zeros.data() + block * 8, static_cast<int>(r)));
}

// kept: the share of weights that are kept; above 1 makes a dense matrix.
Weight random_weight(Values values, int64_t rows, int64_t cols, double kept) {
  const bool sparse = kept <= 1;
  const int g = group_size(values);
  Weight weight{values, rows, cols, std::vector<double>(static_cast<size_t>(rows * cols)), {}, {}, {}, {}, {}, {}};
  if (values == Values::i4) add_blocks(weight);
  for (int64_t row = 0; values == Values::i8 && row < rows; ++row) weight.scales.push_back(std::fabs(normal()) / 40);
  int64_t count = 0;
  for (int64_t top = 0; top < rows; top += kPanelRows) {
    if (sparse) weight.offsets.push_back(values == Values::i4 ? static_cast<int64_t>(weight.data.size()) : count);
    for (int64_t left = 0; left < cols; left += g) {
      uint64_t word = 0;
      int number = 0;
      for (int bit = 0; bit < kPanelRows * g; ++bit) {
        const int64_t row = top + bit / g, col = left + bit % g;
        const bool inside = row < rows && col < cols;
        if (sparse && !(inside && std::uniform_real_distribution<>()(generator) < kept)) continue;
        word |= uint64_t{1} << bit, ++count;
        const bool is_nibble = values == Values::i4;
        const double value = is_nibble ? append_nibble(weight, row, inside ? col : left, number++) : append(weight, inside ? normal() : 0.0f);
        if (inside) weight.dense[static_cast<size_t>(row * cols + col)] = value * (weight.scales.empty() ? 1 : weight.scales[static_cast<size_t>(row)]);
      }
      for (int byte = 0; sparse && byte < 2 * g; ++byte) weight.masks.push_back(static_cast<uint8_t>(word >> (8 * byte)));
    }
  }
  weight.data.insert(weight.data.end(), kOverread, 0xff);  // NaN, to show any use of it
  weight.data.shrink_to_fit(), weight.masks.shrink_to_fit(), weight.offsets.shrink_to_fit(), weight.scales.shrink_to_fit();
  return weight;
}

bool right(const Weight& weight, const std::vector<float>& x, int64_t tokens, const std::vector<float>& y, double factor) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t row = 0; row < weight.rows; ++row) {
      double sum = 0, size = 0, weights = 0, largest = 0;
      for (int64_t i = 0; i < weight.cols; ++i) {
        const double part = weight.dense[static_cast<size_t>(row * weight.cols + i)] * x[static_cast<size_t>(t * weight.cols + i)];
        sum += part, size += std::fabs(part);
        weights += std::fabs(weight.dense[static_cast<size_t>(row * weight.cols + i)]);
        largest = std::fmax(largest, std::fabs(x[static_cast<size_t>(t * weight.cols + i)]));
      }
      const double error = std::fabs(factor * sum - y[static_cast<size_t>(t * weight.rows + row)]);
      // Inputs are rounded to bf16, to 16-bit integers, or (i4) to 8-bit integers: by half a step at most.
      const double bound = weight.values == Values::i4 ? weights * largest / 253 + 1e-5 * size + 1e-6 : 0.005 * size + 1e-2;
      if (!(error <= factor * bound)) return false;
    }
  return true;
}

int check(const char* isa, Pool& pool, const Weight& weight, int64_t tokens) {
  std::vector<float> x(static_cast<size_t>(tokens * weight.cols)), y(static_cast<size_t>(tokens * weight.rows));
  for (float& value : x) value = normal();
  x.shrink_to_fit();
  const Matrix matrix = weight.matrix();
  multiply(matrix, x.data(), tokens, y.data(), pool);
  if (right(weight, x, tokens, y, 1)) return 0;
  std::printf("%s: wrong: values %d, %ld x %ld, %s, %ld tokens, %d threads\n", isa, static_cast<int>(weight.values), static_cast<long>(weight.rows),
              static_cast<long>(weight.cols), weight.masks.empty() ? "dense" : "sparse", static_cast<long>(tokens), pool.size());
  return 1;
}

// Run short jobs one after the other, now and then after a pause in which the threads fall asleep; return the number of
// jobs with a task that was not called exactly once, or was called after the job's end.
int wrong_jobs(Pool& pool, int jobs) {
  int wrong = 0;
  for (int job = 0; job < jobs; ++job) {
    if (job % 256 == 0) std::this_thread::sleep_for(std::chrono::microseconds(400));
    const int64_t tasks = 2 + job % 7;
    std::vector<int> calls(static_cast<size_t>(tasks));  // not atomic, so that ThreadSanitizer reports a task that two threads run
    std::atomic<int> late{0};
    pool.parallel_for(tasks, [&](int64_t i) {
      for (int step = 0; step < (job % 3) * 100; ++step) late.fetch_add(1);
      ++calls[static_cast<size_t>(i)];
    });
    bool once = late.load() == (job % 3) * 100 * tasks;
    for (int count : calls) once = once && count == 1;
    wrong += !once;
  }
  return wrong;
}

int check_pool() {
  constexpr int kJobs = 20000;
  Pool pool(3);
  int wrong = 0, others_wrong = 0;
  std::thread other([&] { others_wrong = wrong_jobs(pool, kJobs); });  // two callers: one job waits for the other
  wrong = wrong_jobs(pool, kJobs);
  other.join();
  std::printf("%d jobs of a pool, %d wrong\n", 2 * kJobs, wrong + others_wrong);
  return wrong + others_wrong;
}

#include "check_products.inl"
#include "check_ops.inl"

}  // namespace

// With names of instruction sets, each of them must be here.
int main(int argc, char** argv) {
  std::vector<std::string> names(argv + 1, argv + argc);
  if (names.empty()) names = {"portable", "avx2", "avx512", "amx", "neon", "neon_dot"};
  std::printf("default: %s\n", isa().name);
  int products = 0, wrong = check_pool();
  Pool one(1), three(3);
  for (const std::string& isa : names) {
    if (!choose_isa(isa.c_str())) {
      std::printf("%s: not here\n", isa.c_str());
      wrong += argc > 1;
      continue;
    }
    Cases cases{isa};
    check_products(cases, one);
    check_ops(cases);
    std::printf("%s: %d cases, %d wrong\n", isa.c_str(), cases.count, cases.wrong);
    wrong += cases.wrong;
    for (Values values : {Values::f32, Values::bf16, Values::i8, Values::i4})
      for (int64_t rows : {1, 16, 53, 100})
        for (int64_t cols : {1, 3, 64, 301})
          for (double kept : {0.0, 0.5, 1.0, 2.0}) {
            const Weight weight = random_weight(values, rows, cols, kept);
            for (int64_t tokens : {1, 2, 3, 7, 17, 40})
              for (const std::string& walk : candidates(values, kept <= 1, token_class(tokens))) {
                if (!choose(values, kept <= 1, token_class(tokens), walk)) return 1;
                wrong += check(walk.c_str(), tokens % 2 ? one : three, weight, tokens), ++products;
              }
          }
  }
  std::printf("%d products, %d of all wrong\n", products, wrong);
  return wrong != 0;
}
