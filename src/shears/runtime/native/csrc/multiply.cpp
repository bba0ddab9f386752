// Splits products into runs of panels for the threads; converts inputs once for all matrices that read them.
#include <algorithm>
#include <vector>

#include "buffer.h"
#include "isa.h"
#include "kernels.h"
#include "tuning.h"

namespace shears {
namespace {

constexpr int64_t kWeightsPerTask = 1 << 18;  // enough to hide the cost of starting at a new place in memory
constexpr int kTasksPerThread = 8;            // more, smaller tasks, in case a thread loses its core

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
  const Isa* isa;
  int tile;
  size_t bytes, place;
};

// Every thread keeps one of these, so that a product allocates nothing once its like was seen.
class Inputs {
 public:
  void start(int64_t tokens) { tokens_ = tokens, size_ = 0, all_.clear(); }

  size_t add(const Product& product, const Choice& choice) {
    const Matrix& matrix = *product.matrix;
    const int tile = choice.isa->tile(matrix.values, tokens_, choice.walk);
    for (size_t k = 0; k < all_.size(); ++k) {
      const Prepared& one = all_[k];
      const bool same_layout = one.isa == choice.isa && one.tile == tile;
      if (same_layout && one.x == product.x && one.values == matrix.values && one.cols == matrix.cols) return k;
    }
    const size_t bytes = choice.isa->tile_bytes(matrix.values, matrix.cols, tile);
    all_.push_back({product.x, matrix.values, matrix.cols, choice.isa, tile, bytes, size_});
    size_ += bytes * tiles(tile);
    return all_.size() - 1;
  }

  void prepare(Pool& pool) {
    base_ = memory_.reserve(size_);
    for (const Prepared& one : all_) {
      auto lay_out = [&](int64_t t) {
        const int64_t first = t * one.tile;
        one.isa->prepare(one.values, one.x + first * one.cols, one.cols, static_cast<int>(std::min<int64_t>(one.tile, tokens_ - first)),
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

  int64_t tokens_ = 0;
  std::vector<Prepared> all_;
  AlignedBuffer memory_;
  size_t size_ = 0;
  char* base_ = nullptr;
};

// What a call of `run` keeps for the next one.
struct Plan {
  Inputs inputs;
  std::vector<Choice> choices;
  std::vector<size_t> places;
};

struct Products {
  const Product* first;
  size_t count;
};

int64_t panel_weights(const Product& product) { return kPanelRows * std::max<int64_t>(product.matrix->cols, 1); }

int64_t number_of_tasks(int64_t total, int64_t tokens, int threads) {
  if (threads == 1) return 1;
  const int64_t wanted = total * tokens / (threads * kWeightsPerTask);
  return threads * std::clamp<int64_t>(wanted, 1, kTasksPerThread);
}

// Call f(product, first panel, last panel) for the weights [begin, end) of all products, in order.
template <class F>
void each_run(const Products& products, int64_t begin, int64_t end, F f) {
  int64_t before = 0;
  for (size_t k = 0; k < products.count; ++k) {
    const Product& one = products.first[k];
    const int64_t count = panels(*one.matrix), unit = panel_weights(one);
    auto panel = [&](int64_t at) { return at <= before ? 0 : std::min((at - before + unit - 1) / unit, count); };
    if (panel(begin) < panel(end)) f(k, panel(begin), panel(end));
    before += count * unit;
  }
}

void run(const Products& products, int64_t tokens, Pool& pool) {
  static thread_local Plan kept;
  Plan& plan = kept;  // this thread's, also in the tasks of others
  plan.inputs.start(tokens), plan.choices.clear(), plan.places.clear();
  int64_t total = 0;
  size_t scratch = 64;
  for (size_t k = 0; k < products.count; ++k) {
    const Product& product = products.first[k];
    const Choice choice = choice_for(product.matrix->values, product.matrix->masks != nullptr, tokens);
    plan.choices.push_back(choice);
    plan.places.push_back(plan.inputs.add(product, choice));
    total += panels(*product.matrix) * panel_weights(product);
    scratch = std::max(scratch, choice.isa->scratch_bytes(*product.matrix, tokens, choice.walk));
  }
  plan.inputs.prepare(pool);
  const int64_t tasks = number_of_tasks(total, tokens, pool.size());
  pool.parallel_for(tasks, [&](int64_t task) {
    static thread_local AlignedBuffer memory;
    void* own = memory.reserve(scratch);
    each_run(products, total * task / tasks, total * (task + 1) / tasks, [&](size_t k, int64_t first, int64_t last) {
      const Product& one = products.first[k];
      const Choice& choice = plan.choices[k];
      choice.isa->run({one.matrix, plan.inputs[plan.places[k]], tokens, one.y, one.factor, one.add, choice.walk}, first, last, own);
    });
  });
}

}  // namespace

void multiply(const Matrix& matrix, const float* x, int64_t m, float* y, Pool& pool) {
  if (m <= 0) return;
  const Product product{&matrix, x, y, 1.0f, false};
  run({&product, 1}, m, pool);
}

void multiply_many(const Matrix* const* matrices, int count, const float* x, int64_t m, float* const* y, Pool& pool) {
  multiply_adapted(matrices, nullptr, count, x, m, y, pool);
}

void add_low_rank(const LowRank& update, const float* x, int64_t m, float* y, Pool& pool) {
  if (m <= 0) return;
  std::vector<float> middle(static_cast<size_t>(m * update.a->rows));
  const Product down{update.a, x, middle.data(), 1.0f, false}, up{update.b, middle.data(), y, update.scaling, true};
  run({&down, 1}, m, pool);
  run({&up, 1}, m, pool);
}

void multiply_adapted(const Matrix* const* matrices, const LowRank* const* updates, int count, const float* x, int64_t m,
                      float* const* y, Pool& pool) {
  if (m <= 0) return;
  static thread_local std::vector<Product> first, second;
  static thread_local AlignedBuffer memory;
  size_t inner = 0;
  for (int k = 0; updates && k < count; ++k)
    if (updates[k]) inner += static_cast<size_t>(m * updates[k]->a->rows);
  auto* middle = reinterpret_cast<float*>(memory.reserve(sizeof(float) * inner));
  first.clear(), second.clear();
  for (int k = 0; k < count; ++k) {
    first.push_back({matrices[k], x, y[k], 1.0f, false});
    const LowRank* update = updates ? updates[k] : nullptr;
    if (!update) continue;
    first.push_back({update->a, x, middle, 1.0f, false});
    second.push_back({update->b, middle, y[k], update->scaling, true});
    middle += m * update->a->rows;
  }
  run({first.data(), first.size()}, m, pool);
  if (!second.empty()) run({second.data(), second.size()}, m, pool);
}

}  // namespace shears
