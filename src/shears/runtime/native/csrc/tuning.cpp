#include "tuning.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>

#include "buffer.h"
#include "huge.h"
#include "kernels.h"
#include "layout.h"
#include "read.h"

namespace shears {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kValues = 4;
constexpr int64_t kColumns = 4096;
constexpr int64_t kSlice = 1 << 20;  // weights per timed call: long enough for a clock, short enough for many turns
constexpr int kFirstTurns = 2;       // timed calls of every candidate
constexpr int kTurns = 9;            // timed calls of a candidate, at most
constexpr double kHopeless = 1.5;    // a candidate that was so many times slower than the best is not timed again

const char* const kIsas[] = {"avx512", "amx", "avx2", "neon_dot", "neon", "portable"};

std::atomic<const Choice*> choices[kValues][2][kTokenClasses];

std::string name_of(const Choice& choice) {
  const Walk& walk = choice.walk;
  return std::string(choice.isa->name) + " panels=" + std::to_string(walk.panels) + " load=" + (walk.in_register ? "register" : "folded") +
         " tile=" + std::to_string(walk.tile) + " ahead=" + std::to_string(walk.ahead);
}

// Whether an instruction set is a candidate only where no other runs: the portable code is several times slower, NEON
// without the dot product does the same work more slowly, and AMX leaves fp32 to AVX-512.
bool is_last_resort(const Isa& one, Values values) {
  return !std::strcmp(one.name, "portable") || !std::strcmp(one.name, "neon") || (values == Values::f32 && !std::strcmp(one.name, "amx"));
}

std::vector<Choice> all_choices(Values values, bool sparse, int token_class) {
  std::vector<Choice> all;
  for (const char* name : kIsas) {
    const Isa* one = find_isa(name);
    if (!one || (isa_is_forced() && one != &isa()) || (is_last_resort(*one, values) && !all.empty())) continue;
    Walk walks[kMaxWalks];
    const int count = one->walks(values, sparse, tokens_of(token_class), walks);
    for (int k = 0; k < count; ++k) all.push_back({one, walks[k]});
  }
  return all;
}

// A choice that stays in memory: a product of another thread may read it while another one is made.
const Choice* kept_choice(const std::string& name, const Choice& choice) {
  static std::mutex lock;
  static auto& all = *new std::map<std::string, Choice>;  // threads may outlive the end of main
  std::lock_guard<std::mutex> guard(lock);
  return &all.emplace(name, choice).first->second;
}

uint64_t next_random(uint64_t& state) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state;
}

// Bytes per panel of a random weight, about half of it zeros where it is sparse.
double panel_bytes(Values values, bool sparse) {
  const auto count = static_cast<double>(groups(values, kColumns));
  const double rest = values == Values::i4 ? static_cast<double>(blocks(kColumns)) * kPanelRows * 2.5 : 0;
  if (!sparse) return rest + count * group_bytes(values);
  return rest + count * (2 * group_size(values) + group_bytes(values) / 2.0 + (values == Values::i4 ? 0.25 : 0));
}

// A random weight of whole panels, in memory of its own.
class RandomWeight {
 public:
  RandomWeight(Values values, bool sparse, size_t bytes) {
    const int64_t mask_bytes = groups(values, kColumns) * 2 * group_size(values);  // of a panel
    const auto panels = std::max<int64_t>(2, static_cast<int64_t>(static_cast<double>(bytes) / panel_bytes(values, sparse)));
    uint64_t state = 0x9e3779b97f4a7c15;
    auto value_bytes = static_cast<size_t>(panels * groups(values, kColumns) * group_bytes(values));
    uint8_t* masks = nullptr;
    if (sparse) {
      masks = static_cast<uint8_t*>(memory_.copy(nullptr, static_cast<size_t>(panels * mask_bytes)));
      value_bytes = fill_masks(values, masks, panels, mask_bytes, state);
    }
    auto* data = static_cast<uint64_t*>(memory_.copy(nullptr, value_bytes + 8));
    const bool is_integer = values == Values::i8 || values == Values::i4;
    const uint64_t small = is_integer ? ~uint64_t{0} : 0x3f7f3f7f3f7f3f7f;  // no infinities, no NaN
    for (size_t k = 0; k < value_bytes / 8; ++k) data[k] = next_random(state) & small;
    matrix_ = {values, panels * kPanelRows, kColumns, masks, data, sparse ? offsets_.data() : nullptr, nullptr};
    if (values == Values::i8) scales_.resize(static_cast<size_t>(panels * kPanelRows), 0.01f), matrix_.scales = scales_.data();
    if (values == Values::i4) add_blocks(static_cast<size_t>(panels * blocks(kColumns)));
  }
  const Matrix& matrix() const { return matrix_; }

 private:
  // Return the bytes of the kept values.
  size_t fill_masks(Values values, uint8_t* masks, int64_t panels, int64_t bytes, uint64_t& state) {
    const int element = values == Values::f32 ? 4 : values == Values::bf16 ? 2 : 1;
    size_t size = 0;
    for (int64_t p = 0; p < panels; ++p) {
      offsets_.push_back(static_cast<int64_t>(size) / element);
      for (int64_t at = 0; at < bytes; at += 8) {
        const uint64_t word = next_random(state);
        std::memcpy(masks + p * bytes + at, &word, 8);
        const auto kept = static_cast<size_t>(__builtin_popcountll(word));
        size += values == Values::i4 ? (kept + 1) / 2 : kept * static_cast<size_t>(element);
      }
    }
    return size;
  }

  void add_blocks(size_t count) {
    constexpr uint16_t kHundredth = 0x211f;  // fp16
    auto* scales = static_cast<uint16_t*>(memory_.copy(nullptr, count * kPanelRows * 2));
    auto* zeros = static_cast<uint8_t*>(memory_.copy(nullptr, count * kPanelRows / 2));
    std::fill_n(scales, count * kPanelRows, kHundredth);
    std::fill_n(zeros, count * kPanelRows / 2, 0x77);
    matrix_.block_scales = scales, matrix_.zeros = zeros;
  }

  HugeBuffer memory_;
  std::vector<int64_t> offsets_;
  std::vector<float> scales_;
  Matrix matrix_{};
};

// Times calls that go through the panels of a weight one after the other, so that each reads its weights from memory.
class Timer {
 public:
  explicit Timer(const Matrix& matrix)
      : matrix_(matrix), panels_(panels(matrix)), slice_(std::min(panels_, kSlice / (kPanelRows * matrix.cols))) {}

  double seconds_per_weight(const Choice& choice, int64_t tokens) {
    prepare(choice, tokens);
    const int64_t first = at_ + slice_ <= panels_ ? at_ : 0;
    at_ = first + slice_;
    const auto begin = Clock::now();
    choice.isa->run({&matrix_, inputs_.data(), tokens, y_.data(), 1.0f, false, choice.walk}, first, first + slice_, scratch_.data());
    return std::chrono::duration<double>(Clock::now() - begin).count() / static_cast<double>(slice_ * kPanelRows * matrix_.cols);
  }

 private:
  void prepare(const Choice& choice, int64_t tokens) {
    const int tile = choice.isa->tile(matrix_.values, tokens, choice.walk);
    const size_t bytes = choice.isa->tile_bytes(matrix_.values, matrix_.cols, tile);
    const auto tiles = static_cast<size_t>((tokens + tile - 1) / tile);
    x_.assign(static_cast<size_t>(tokens * matrix_.cols), 0.5f);
    y_.resize(static_cast<size_t>(tokens * matrix_.rows));
    inputs_.reserve(bytes * tiles);
    scratch_.reserve(choice.isa->scratch_bytes(matrix_, tokens, choice.walk) + 64);
    for (size_t k = 0; k < tiles; ++k) {
      const auto first = static_cast<int64_t>(k) * tile;
      const int count = static_cast<int>(std::min<int64_t>(tile, tokens - first));
      choice.isa->prepare(matrix_.values, x_.data() + first * matrix_.cols, matrix_.cols, count, tile, inputs_.data() + bytes * k);
    }
  }

  const Matrix& matrix_;
  int64_t panels_, slice_, at_ = 0;
  std::vector<float> x_, y_;
  AlignedBuffer inputs_, scratch_;
};

// Panels [first, first + count) of a matrix, over the same memory.
Matrix panels_of(const Matrix& matrix, int64_t first, int64_t count) {
  const int64_t words = groups(matrix.values, matrix.cols), word_bytes = 2 * group_size(matrix.values);
  Matrix part = matrix;
  part.rows = count * kPanelRows;
  if (matrix.scales) part.scales = matrix.scales + first * kPanelRows;
  if (matrix.zeros) {
    part.block_scales = matrix.block_scales + first * blocks(matrix.cols) * kPanelRows;
    part.zeros = matrix.zeros + first * blocks(matrix.cols) * (kPanelRows / 2);
  }
  if (matrix.masks) {
    part.masks = matrix.masks + first * words * word_bytes;
    part.offsets = matrix.offsets + first;
  } else {
    part.data = static_cast<const char*>(matrix.data) + first * words * group_bytes(matrix.values);
  }
  return part;
}

template <class F>
double seconds_of(F f) {
  const auto begin = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

double least_median(const std::vector<std::vector<double>>& times) {
  double least = std::numeric_limits<double>::infinity();
  for (const auto& one : times) least = std::min(least, median(one));
  return least;
}

}  // namespace

int token_class(int64_t tokens) { return tokens <= 2 ? static_cast<int>(tokens) - 1 : tokens <= 4 ? 2 : tokens <= 8 ? 3 : tokens <= 16 ? 4 : 5; }

int64_t tokens_of(int token_class) {
  constexpr int64_t kTokens[kTokenClasses] = {1, 2, 4, 8, 16, 64};
  return kTokens[token_class];
}

Choice choice_for(Values values, bool sparse, int64_t tokens) {
  const Choice* made = choices[static_cast<int>(values)][sparse][token_class(tokens)].load(std::memory_order_acquire);
  if (made && (!isa_is_forced() || made->isa == &isa())) return *made;
  Choice choice{&isa(), {}};
  Walk walks[kMaxWalks];
  choice.isa->walks(values, sparse, tokens, walks);
  choice.walk = walks[0];
  return choice;
}

std::vector<std::string> candidates(Values values, bool sparse, int token_class) {
  std::vector<std::string> names;
  for (const Choice& choice : all_choices(values, sparse, token_class)) names.push_back(name_of(choice));
  return names;
}

std::string chosen(Values values, bool sparse, int token_class) { return name_of(choice_for(values, sparse, tokens_of(token_class))); }

bool choose(Values values, bool sparse, int token_class, const std::string& name) {
  for (const Choice& choice : all_choices(values, sparse, token_class))
    if (name_of(choice) == name) {
      choices[static_cast<int>(values)][sparse][token_class] = kept_choice(name, choice);
      return true;
    }
  return false;
}

void forget_choices() {
  for (auto& kind : choices)
    for (auto& row : kind)
      for (auto& one : row) one = nullptr;
}

std::vector<std::vector<std::pair<std::string, double>>> time_candidates(Values values, bool sparse, size_t bytes, double seconds) {
  const RandomWeight weight(values, sparse, bytes);
  Timer timer(weight.matrix());
  std::vector<std::vector<std::pair<std::string, double>>> result;
  for (int number = 0; number < kTokenClasses; ++number) {
    const std::vector<Choice> all = all_choices(values, sparse, number);
    std::vector<std::vector<double>> times(all.size());
    const auto end = Clock::now() + std::chrono::duration<double>(seconds / kTokenClasses);
    for (int turn = 0; turn < kTurns && (turn < kFirstTurns || Clock::now() < end); ++turn) {
      const double hopeless = turn < kFirstTurns ? std::numeric_limits<double>::infinity() : kHopeless * least_median(times);
      for (size_t k = 0; k < all.size(); ++k)
        if (turn < kFirstTurns || median(times[k]) <= hopeless) times[k].push_back(timer.seconds_per_weight(all[k], tokens_of(number)));
    }
    result.emplace_back();
    for (size_t k = 0; k < all.size(); ++k) result.back().emplace_back(name_of(all[k]), median(times[k]));
  }
  return result;
}

Speed measure_speed(Values values, bool sparse, int64_t tokens, size_t bytes, int turns, Pool& pool) {
  const RandomWeight weight(values, sparse, bytes);
  const Matrix& matrix = weight.matrix();
  const int64_t all = panels(matrix), slice = std::max<int64_t>(1, std::min(all, 4 * kSlice / (kPanelRows * matrix.cols)));
  const double weights = static_cast<double>(slice * kPanelRows * matrix.cols), memory_slice = 8 << 20;
  HugeBuffer memory;
  const auto memory_bytes = static_cast<int64_t>(bytes) / (8 << 20) * (8 << 20);
  char* data = static_cast<char*>(memory.copy(nullptr, static_cast<size_t>(memory_bytes)));
  std::memset(data, 1, static_cast<size_t>(memory_bytes));
  std::vector<float> x(static_cast<size_t>(tokens * matrix.cols), 0.5f), y(static_cast<size_t>(tokens * slice * kPanelRows));
  std::vector<double> products, reads;
  int64_t first = 0, place = 0;
  for (int turn = 0; turn < turns; ++turn) {
    const Matrix part = panels_of(matrix, first, slice);
    products.push_back(seconds_of([&] { multiply(part, x.data(), tokens, y.data(), pool); }));
    reads.push_back(seconds_of([&] {
      volatile uint64_t sum = read_memory(data + place, 8 << 20, pool);
      (void)sum;
    }));
    first = first + 2 * slice <= all ? first + slice : 0;
    place = (place + (8 << 20)) % memory_bytes;
  }
  const double bytes_per_weight = panel_bytes(values, sparse) / static_cast<double>(kPanelRows * kColumns);
  return {median(products) / weights, bytes_per_weight, memory_slice / median(reads)};
}

}  // namespace shears
