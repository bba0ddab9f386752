// Splits products into runs of panels for the threads; converts inputs once for all matrices that read them.
#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#include "isa.h"
#include "kernels.h"

namespace shears {
namespace {

constexpr int64_t kWeightsPerTask = 1 << 18;  // enough to hide the cost of starting at a new place in memory
constexpr int kTasksPerThread = 8;            // more, smaller tasks, in case a thread loses its core

// 64-byte aligned memory that grows and is reused; one per thread and purpose.
class Buffer {
 public:
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
  void* reserve(size_t bytes) {
    if (bytes > size_) {
      ::operator delete(data_, std::align_val_t{64});
      data_ = nullptr, size_ = 0;
      data_ = ::operator new(bytes, std::align_val_t{64});
      size_ = bytes;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

struct Product {
  const Matrix* matrix;
  const float* x;
  float* y;
  float factor;
  bool add;
};

struct Prepared {
  const float* x;
  Values values;
  int64_t cols;
  int tile;
  size_t bytes, place;
};

class Inputs {
 public:
  Inputs(const Isa& isa, int64_t tokens) : isa_(isa), tokens_(tokens) {}

  size_t add(const Product& product) {
    const Matrix& matrix = *product.matrix;
    for (size_t k = 0; k < all_.size(); ++k)
      if (all_[k].x == product.x && all_[k].values == matrix.values && all_[k].cols == matrix.cols) return k;
    const int tile = isa_.tile(matrix.values, tokens_);
    const size_t bytes = isa_.tile_bytes(matrix.values, matrix.cols, tile);
    all_.push_back({product.x, matrix.values, matrix.cols, tile, bytes, size_});
    size_ += bytes * tiles(tile);
    return all_.size() - 1;
  }

  void prepare(Pool& pool) {
    static thread_local Buffer memory;
    base_ = static_cast<char*>(memory.reserve(size_));
    for (const Prepared& one : all_) {
      auto lay_out = [&](int64_t t) {
        const int64_t first = t * one.tile;
        isa_.prepare(one.values, one.x + first * one.cols, one.cols, static_cast<int>(std::min<int64_t>(one.tile, tokens_ - first)),
                     one.tile, base_ + one.place + one.bytes * t);
      };
      if (tokens_ * one.cols < kWeightsPerTask)
        for (int64_t t = 0; t < static_cast<int64_t>(tiles(one.tile)); ++t) lay_out(t);
      else
        pool.parallel_for(static_cast<int64_t>(tiles(one.tile)), lay_out);
    }
  }

  const void* operator[](size_t k) const { return base_ + all_[k].place; }

 private:
  size_t tiles(int tile) const { return static_cast<size_t>((tokens_ + tile - 1) / tile); }

  const Isa& isa_;
  int64_t tokens_;
  std::vector<Prepared> all_;
  size_t size_ = 0;
  char* base_ = nullptr;
};

int64_t panel_weights(const Product& product) { return kPanelRows * std::max<int64_t>(product.matrix->cols, 1); }

int64_t number_of_tasks(int64_t total, int64_t tokens, int threads) {
  if (threads == 1) return 1;
  const int64_t wanted = total * tokens / (threads * kWeightsPerTask);
  return threads * std::clamp<int64_t>(wanted, 1, kTasksPerThread);
}

// Call f(product, first panel, last panel) for the weights [begin, end) of all products, in order.
template <class F>
void each_run(const std::vector<Product>& products, int64_t begin, int64_t end, F f) {
  int64_t before = 0;
  for (size_t k = 0; k < products.size(); ++k) {
    const int64_t count = panels(*products[k].matrix), unit = panel_weights(products[k]);
    auto panel = [&](int64_t at) { return at <= before ? 0 : std::min((at - before + unit - 1) / unit, count); };
    if (panel(begin) < panel(end)) f(k, panel(begin), panel(end));
    before += count * unit;
  }
}

void run(const std::vector<Product>& products, int64_t tokens, Pool& pool) {
  const Isa& chosen = isa();
  Inputs inputs(chosen, tokens);
  std::vector<size_t> places;
  int64_t total = 0;
  size_t scratch = 64;
  for (const Product& product : products) {
    places.push_back(inputs.add(product));
    total += panels(*product.matrix) * panel_weights(product);
    scratch = std::max(scratch, chosen.scratch_bytes(*product.matrix, tokens));
  }
  inputs.prepare(pool);
  const int64_t tasks = number_of_tasks(total, tokens, pool.size());
  pool.parallel_for(tasks, [&](int64_t task) {
    static thread_local Buffer memory;
    void* own = memory.reserve(scratch);
    each_run(products, total * task / tasks, total * (task + 1) / tasks, [&](size_t k, int64_t first, int64_t last) {
      const Product& one = products[k];
      chosen.run({one.matrix, inputs[places[k]], tokens, one.y, one.factor, one.add}, first, last, own);
    });
  });
}

}  // namespace

void multiply(const Matrix& matrix, const float* x, int64_t m, float* y, Pool& pool) {
  if (m > 0) run({{&matrix, x, y, 1.0f, false}}, m, pool);
}

void multiply_many(const Matrix* const* matrices, int count, const float* x, int64_t m, float* const* y, Pool& pool) {
  multiply_adapted(matrices, nullptr, count, x, m, y, pool);
}

void add_low_rank(const LowRank& update, const float* x, int64_t m, float* y, Pool& pool) {
  if (m <= 0) return;
  std::vector<float> middle(static_cast<size_t>(m * update.a->rows));
  run({{update.a, x, middle.data(), 1.0f, false}}, m, pool);
  run({{update.b, middle.data(), y, update.scaling, true}}, m, pool);
}

void multiply_adapted(const Matrix* const* matrices, const LowRank* const* updates, int count, const float* x, int64_t m,
                      float* const* y, Pool& pool) {
  if (m <= 0) return;
  std::vector<Product> first, second;
  std::vector<std::vector<float>> middle(static_cast<size_t>(count));
  for (int k = 0; k < count; ++k) {
    first.push_back({matrices[k], x, y[k], 1.0f, false});
    const LowRank* update = updates ? updates[k] : nullptr;
    if (!update) continue;
    middle[k].resize(static_cast<size_t>(m * update->a->rows));
    first.push_back({update->a, x, middle[k].data(), 1.0f, false});
    second.push_back({update->b, middle[k].data(), y[k], update->scaling, true});
  }
  run(first, m, pool);
  if (!second.empty()) run(second, m, pool);
}

}  // namespace shears
