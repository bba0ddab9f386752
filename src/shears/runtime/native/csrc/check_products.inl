// The promises of tests/runtime/native/test_kernels.py, for machines that have no Python. Included by check.cpp.

constexpr double kUnit = 1.0 / (1 << 24);  // half a step of fp32
constexpr int64_t kTokens[] = {1, 2, 3, 8, 16, 17, 64, 130};

// Counts the cases of one instruction set, and prints those that fail.
struct Cases {
  std::string isa;
  int count = 0, wrong = 0;

  void expect(bool holds, const std::string& what) {
    ++count;
    if (holds) return;
    ++wrong;
    std::printf("%s: wrong: %s\n", isa.c_str(), what.c_str());
  }
};

std::string about(const Weight& weight, int64_t tokens) {
  return "values " + std::to_string(static_cast<int>(weight.values)) + ", " + std::to_string(weight.rows) + " x " +
         std::to_string(weight.cols) + (weight.masks.empty() ? ", dense, " : ", sparse, ") + std::to_string(tokens) + " tokens";
}

std::vector<float> random_numbers(int64_t count) {
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = normal();
  numbers.shrink_to_fit();
  return numbers;
}

std::vector<float> product(const Weight& weight, const std::vector<float>& x, int64_t tokens, Pool& pool) {
  std::vector<float> y(static_cast<size_t>(tokens * weight.rows), std::nanf(""));
  multiply(weight.matrix(), x.data(), tokens, y.data(), pool);
  return y;
}

// A token's inputs as docs/internals/kernels.md says that this path sees them.
std::vector<double> rounded(const float* x, int64_t cols, Values values, const std::string& isa) {
  std::vector<double> seen(x, x + cols);
  if (values == Values::bf16 && (isa == "avx512" || isa == "amx"))
    for (double& one : seen) {
      uint16_t bits;
      const float exact = static_cast<float>(one);
      float wide;
      narrow(&exact, &bits, 1), widen(&bits, &wide, 1);
      one = wide;
    }
  if (values == Values::i8 && isa != "portable") {
    float largest = 0;
    for (int64_t i = 0; i < cols; ++i) largest = std::fmax(largest, std::fabs(x[i]));
    const float scale = largest / 32639;
    for (int64_t i = 0; i < cols; ++i) seen[static_cast<size_t>(i)] = scale > 1e-35f ? std::nearbyintf(x[i] * (1 / scale)) * static_cast<double>(scale) : 0;
  }
  return seen;
}

// Whether y is as near to the product in double as rounding to fp32 explains: a sum of n products in any order is off by
// at most n half steps of the sum of magnitudes; a few more for scales.
bool within_rounding(const Weight& weight, const std::vector<float>& x, int64_t tokens, const std::vector<float>& y, const std::string& isa) {
  for (int64_t t = 0; t < tokens; ++t) {
    const std::vector<double> inputs = rounded(x.data() + t * weight.cols, weight.cols, weight.values, isa);
    for (int64_t row = 0; row < weight.rows; ++row) {
      double sum = 0, size = 0;
      for (int64_t i = 0; i < weight.cols; ++i) {
        const double part = weight.dense[static_cast<size_t>(row * weight.cols + i)] * inputs[static_cast<size_t>(i)];
        sum += part, size += std::fabs(part);
      }
      const double error = std::fabs(sum - y[static_cast<size_t>(t * weight.rows + row)]);
      if (!(error <= static_cast<double>(weight.cols + 4) * kUnit * size + 1e-30)) return false;
    }
  }
  return true;
}

// The index of a weight among the values; -1 if it is pruned.
int64_t place_of(const Weight& weight, int64_t row, int64_t col) {
  const int g = group_size(weight.values);
  const int64_t panel = row / kPanelRows, all = groups(weight.values, weight.cols);
  const auto wanted = static_cast<int>(row % kPanelRows * g + col % g);
  if (weight.masks.empty()) return (panel * all + col / g) * kPanelRows * g + wanted;
  int64_t place = weight.offsets[static_cast<size_t>(panel)];
  for (int64_t j = 0; j <= col / g; ++j)
    for (int bit = 0; bit < kPanelRows * g; ++bit) {
      const bool kept = weight.masks[static_cast<size_t>((panel * all + j) * 2 * g + bit / 8)] >> bit % 8 & 1;
      if (j == col / g && bit == wanted) return kept ? place : -1;
      place += kept;
    }
  return -1;
}

// Prune every weight of some rows, which must be whole panels.
void empty_panels(Weight& weight, int64_t first, int64_t last) {
  const auto bytes = static_cast<size_t>(groups(weight.values, weight.cols) * 2 * group_size(weight.values));
  const auto panel = static_cast<size_t>(first / kPanelRows), end = static_cast<size_t>(last / kPanelRows);
  const auto size = static_cast<size_t>(4 / group_size(weight.values));  // bytes of a value
  const auto from = static_cast<size_t>(weight.offsets[panel]), to = static_cast<size_t>(weight.offsets[end]);
  weight.data.erase(weight.data.begin() + static_cast<std::ptrdiff_t>(from * size), weight.data.begin() + static_cast<std::ptrdiff_t>(to * size));
  std::fill(weight.masks.begin() + static_cast<std::ptrdiff_t>(panel * bytes), weight.masks.begin() + static_cast<std::ptrdiff_t>(end * bytes), 0);
  for (size_t p = panel + 1; p < weight.offsets.size(); ++p)
    weight.offsets[p] = p <= end ? static_cast<int64_t>(from) : weight.offsets[p] - static_cast<int64_t>(to - from);
  std::fill(weight.dense.begin() + first * weight.cols, weight.dense.begin() + last * weight.cols, 0.0);
  weight.data.shrink_to_fit();
}

constexpr Values kAllValues[] = {Values::f32, Values::bf16, Values::i8};

void check_rounding(Cases& cases, Pool& pool) {
  const auto compare = [&](const Weight& weight, int64_t tokens) {
    const std::vector<float> x = random_numbers(tokens * weight.cols);
    cases.expect(within_rounding(weight, x, tokens, product(weight, x, tokens, pool), cases.isa), "rounding: " + about(weight, tokens));
  };
  constexpr double kKept[] = {1.0, 0.9, 0.5, 0.1, 0.0, 2.0};
  const auto between = [](int first, int last) { return std::uniform_int_distribution<int>(first, last)(generator); };
  for (Values values : kAllValues) {
    for (double kept : {0.5, 2.0}) {
      const Weight weight = random_weight(values, 53, 139, kept);
      for (int64_t tokens : kTokens) compare(weight, tokens);
    }
    for (int number = 0; number < 24; ++number) compare(random_weight(values, between(1, 70), between(1, 90), kKept[number % 6]), between(1, 40));
  }
}

void check_long_rows(Cases& cases, Pool& pool) {
  for (Values values : kAllValues) {
    Weight weight = random_weight(values, 40, 5000, 0.5);
    empty_panels(weight, 16, 32);
    for (int64_t tokens : {1, 2, 5}) {
      const std::vector<float> x = random_numbers(tokens * weight.cols), y = product(weight, x, tokens, pool);
      bool zero = true;
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t row = 16; row < 32; ++row) zero = zero && y[static_cast<size_t>(t * 40 + row)] == 0;
      cases.expect(zero && within_rounding(weight, x, tokens, y, cases.isa), "long rows and empty ones: " + about(weight, tokens));
    }
  }
}

// The longest int8 rows with the largest sums, and inputs whose lower half is -128.
void check_largest_sums(Cases& cases, Pool& pool) {
  Weight weight{Values::i8, 2, kMaxInt8Columns, std::vector<double>(2 * kMaxInt8Columns, -128.0), {}, {}, {}, {1.0f, 1.0f}, {}, {}};
  weight.data.resize(static_cast<size_t>(groups(Values::i8, kMaxInt8Columns)) * 64 + kOverread);
  const std::vector<int8_t> rows(2 * kMaxInt8Columns, -128);
  pack_dense(Values::i8, rows.data(), 2, kMaxInt8Columns, weight.data.data());
  for (float rest : {32639.0f, -32639.0f, -128.0f})
    for (int64_t tokens : {1, 2, 3}) {
      std::vector<float> x(static_cast<size_t>(tokens * kMaxInt8Columns), rest);
      for (int64_t t = 0; t < tokens; ++t) x[static_cast<size_t>(t * kMaxInt8Columns)] = 32639.0f;
      cases.expect(within_rounding(weight, x, tokens, product(weight, x, tokens, pool), cases.isa), "largest sums: " + about(weight, tokens));
    }
}

void check_same_bits(Cases& cases, Pool& one) {
  Pool two(2), three(3);
  for (Values values : kAllValues)
    for (double kept : {0.5, 2.0}) {
      const Weight weight = random_weight(values, 200, 400, kept);
      for (int64_t tokens : {1, 2, 5, 40}) {
        const std::vector<float> x = random_numbers(tokens * weight.cols), expected = product(weight, x, tokens, one);
        cases.expect(product(weight, x, tokens, two) == expected && product(weight, x, tokens, three) == expected,
                     "bits with more threads: " + about(weight, tokens));
        const int kind = token_class(tokens);
        bool same = true;
        for (const std::string& walk : candidates(values, kept <= 1, kind)) same = same && choose(values, kept <= 1, kind, walk) && product(weight, x, tokens, one) == expected;
        forget_choices();
        cases.expect(same, "bits of another walk: " + about(weight, tokens));
      }
    }
}

// NaN or infinity of the last token's input 7 reaches only that token, there every row that keeps the weight.
void check_odd_inputs(Cases& cases, Pool& pool) {
  for (Values values : kAllValues) {
    const Weight weight = random_weight(values, 20, 60, 0.5);
    for (int64_t others : {1, 3, 20}) {
      const int64_t tokens = others + 1;
      std::vector<float> x = random_numbers(tokens * weight.cols);
      const std::vector<float> clean = product(weight, x, tokens, pool);
      for (float odd : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
        x[static_cast<size_t>(others * weight.cols + 7)] = odd;
        const std::vector<float> y = product(weight, x, tokens, pool);
        bool right = std::equal(y.begin(), y.begin() + others * weight.rows, clean.begin());
        for (int64_t row = 0; row < weight.rows; ++row)
          right = right && (place_of(weight, row, 7) < 0 || !std::isfinite(y[static_cast<size_t>(others * weight.rows + row)]));
        cases.expect(right, "an input that is not finite: " + about(weight, tokens));
      }
    }
  }
}

// NaN or infinity of a weight reaches its row only.
void check_odd_weights(Cases& cases, Pool& pool) {
  for (Values values : {Values::f32, Values::bf16}) {
    Weight weight = random_weight(values, 36, 60, 0.5);
    int64_t col = 0;
    while (place_of(weight, 33, col) < 0) ++col;
    const int64_t place = place_of(weight, 33, col);
    for (int64_t tokens : {1, 3, 20}) {
      const std::vector<float> x = random_numbers(tokens * weight.cols), clean = product(weight, x, tokens, pool);
      for (float odd : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
        Weight changed = weight;
        uint16_t half;
        narrow(&odd, &half, 1);
        if (values == Values::f32)
          std::memcpy(changed.data.data() + 4 * place, &odd, 4);
        else
          std::memcpy(changed.data.data() + 2 * place, &half, 2);
        const std::vector<float> y = product(changed, x, tokens, pool);
        bool right = true;
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t row = 0; row < 36; ++row) {
            const auto at = static_cast<size_t>(t * 36 + row);
            right = right && (row == 33 ? !std::isfinite(y[at]) : y[at] == clean[at]);
          }
        cases.expect(right, "a weight that is not finite: " + about(weight, tokens));
      }
    }
  }
}

// Several weights with the same inputs, the second with a low-rank update.
void check_updates(Cases& cases) {
  Pool pool(2);
  for (Values values : kAllValues)
    for (int64_t tokens : {1, 7, 33}) {
      const Weight weights[] = {random_weight(values, 64, 130, 0.5), random_weight(values, 17, 130, 0.5), random_weight(values, 33, 130, 0.5)};
      const Weight a = random_weight(Values::f32, 6, 130, 2.0), b = random_weight(Values::f32, 17, 6, 2.0);
      const Matrix matrices[] = {weights[0].matrix(), weights[1].matrix(), weights[2].matrix()}, down = a.matrix(), up = b.matrix();
      const LowRank update{&down, &up, 0.05f};
      const Matrix* all[] = {&matrices[0], &matrices[1], &matrices[2]};
      const LowRank* updates[] = {nullptr, &update, nullptr};
      const std::vector<float> x = random_numbers(tokens * 130);
      std::vector<std::vector<float>> y;
      for (const Weight& weight : weights) y.push_back(std::vector<float>(static_cast<size_t>(tokens * weight.rows)));
      float* outputs[] = {y[0].data(), y[1].data(), y[2].data()};
      multiply_adapted(all, updates, 3, x.data(), tokens, outputs, pool);
      bool right = y[0] == product(weights[0], x, tokens, pool) && y[2] == product(weights[2], x, tokens, pool);
      const std::vector<float> plain = product(weights[1], x, tokens, pool);
      std::vector<float> added = plain;
      add_low_rank(update, x.data(), tokens, added.data(), pool);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t row = 0; row < 17; ++row) {
          const auto at = static_cast<size_t>(t * 17 + row);
          double expected = plain[at];
          for (int64_t r = 0; r < 6; ++r) {
            double low = 0;
            for (int64_t i = 0; i < 130; ++i) low += a.dense[static_cast<size_t>(r * 130 + i)] * x[static_cast<size_t>(t * 130 + i)];
            expected += 0.05f * b.dense[static_cast<size_t>(row * 6 + r)] * low;
          }
          const double bound = 1e-4 + 1e-5 * std::fabs(expected);  // fp32 sums of 130 products
          right = right && std::fabs(y[1][at] - expected) <= bound && std::fabs(added[at] - expected) <= bound;
        }
      cases.expect(right, "several weights with an update: " + about(weights[1], tokens));
    }
}

void check_empty_weights(Cases& cases, Pool& pool) {
  const std::vector<uint8_t> data(kOverread);
  const std::vector<float> x(16, 1.0f), scales(3, 1.0f);
  for (Values values : kAllValues) {
    const float* own = values == Values::i8 ? scales.data() : nullptr;
    std::vector<float> y(6, 1.0f);
    multiply({values, 0, 8, nullptr, data.data(), nullptr, own}, x.data(), 2, y.data(), pool);
    cases.expect(y == std::vector<float>(6, 1.0f), "a weight without rows");
    multiply({values, 3, 0, nullptr, data.data(), nullptr, own}, x.data(), 2, y.data(), pool);
    cases.expect(y == std::vector<float>(6, 0.0f), "a weight without inputs");
  }
}

void check_products(Cases& cases, Pool& pool) {
  forget_choices();  // the default walks
  check_rounding(cases, pool);
  check_long_rows(cases, pool);
  check_largest_sums(cases, pool);
  check_same_bits(cases, pool);
  check_odd_inputs(cases, pool);
  check_odd_weights(cases, pool);
  check_updates(cases);
  check_empty_weights(cases, pool);
}
