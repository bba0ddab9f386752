// The operations of a decoder layer against sums in double, and a small decoder. Included by check.cpp after
// check_products.inl.

bool near(double value, double expected, double tolerance) { return std::fabs(value - expected) <= tolerance * (1 + std::fabs(expected)); }

void check_elementwise(Cases& cases) {
  for (int64_t n : {1, 3, 4, 7, 16, 37, 70, 576}) {
    const std::vector<float> x = random_numbers(n), weight = random_numbers(n);
    double squares = 0;
    for (float one : x) squares += static_cast<double>(one) * one;
    std::vector<float> y(static_cast<size_t>(n)), sum = weight, gate = x, other = x, scaled = x, wide(static_cast<size_t>(n));
    std::vector<uint16_t> halves(static_cast<size_t>(n));
    narrow(x.data(), halves.data(), n);
    for (float& one : gate) one *= 40;  // exp(-40) and exp(40), too
    const std::vector<float> gates = gate;
    ops().rms_norm(x.data(), weight.data(), 1e-6f, n, y.data());
    ops().add(x.data(), n, sum.data());
    ops().swiglu(weight.data(), n, gate.data());
    ops().geglu(weight.data(), n, other.data());
    ops().scale(0.3f, n, scaled.data());
    ops().widen(halves.data(), n, wide.data());
    bool right = true;
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      const double silu = gates[i] / (1 + std::exp(-static_cast<double>(gates[i])));
      const double cube = x[i] + 0.044715 * std::pow(x[i], 3), gelu = 0.5 * x[i] * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * cube));
      uint32_t bits;
      std::memcpy(&bits, &wide[i], 4);
      right = right && near(y[i], weight[i] * x[i] / std::sqrt(squares / static_cast<double>(n) + 1e-6), 1e-6) && sum[i] == weight[i] + x[i] &&
              near(gate[i], silu * weight[i], 1e-6) && near(other[i], gelu * weight[i], 1e-6) && scaled[i] == x[i] * 0.3f && bits == uint32_t{halves[i]} << 16;
    }
    cases.expect(right, "norm, sum, swiglu, geglu, scale and widening of " + std::to_string(n) + " numbers");
  }
}

void check_convolution(Cases& cases) {
  for (int64_t n : {1, 5, 16, 37, 70})
    for (int64_t size : {2, 4}) {
      const std::vector<float> x = random_numbers(size * n), weights = random_numbers(size * n), gate = random_numbers(n);
      std::vector<float> y(static_cast<size_t>(n)), gated = y;
      std::vector<const float*> rows;
      for (int64_t j = 0; j < size; ++j) rows.push_back(x.data() + j * n);
      ops().convolve(rows.data(), weights.data(), size, n, y.data());
      std::copy_n(x.data(), n, gated.data());
      ops().gate(gate.data(), n, gated.data());
      bool right = true;
      for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        double sum = 0;
        for (size_t j = 0; j < static_cast<size_t>(size); ++j) sum += static_cast<double>(weights[j * n + i]) * x[j * n + i];
        right = right && near(y[i], sum / (1 + std::exp(-sum)), 1e-6) && near(gated[i], x[i] / (1 + std::exp(-static_cast<double>(gate[i]))), 1e-6);
      }
      cases.expect(right, "convolution of " + std::to_string(size) + " rows of " + std::to_string(n));
    }
}

void check_delta(Cases& cases) {
  for (int64_t keys : {1, 8, 20})
    for (int64_t values : {1, 8, 37, 128}) {
      const std::vector<float> before = random_numbers(keys * values), query = random_numbers(keys), key = random_numbers(keys), value = random_numbers(values);
      std::vector<float> state = before, output(static_cast<size_t>(values));
      ops().delta({state.data(), query.data(), key.data(), value.data(), 0.9f, 0.4f, keys, values, output.data()});
      bool right = true;
      for (size_t v = 0; v < static_cast<size_t>(values); ++v) {
        double known = 0, expected = 0;
        for (size_t k = 0; k < static_cast<size_t>(keys); ++k) known += 0.9f * static_cast<double>(before[k * values + v]) * key[k];
        for (size_t k = 0; k < static_cast<size_t>(keys); ++k) {
          const double now = 0.9f * static_cast<double>(before[k * values + v]) + key[k] * (value[v] - known) * 0.4f;
          right = right && near(state[k * values + v], now, 1e-5);
          expected += now * query[k];
        }
        right = right && near(output[v], expected, 1e-5);
      }
      cases.expect(right, "delta rule of " + std::to_string(keys) + " keys and " + std::to_string(values) + " values");
    }
}

void check_rotation(Cases& cases) {
  for (int64_t head : {2, 6, 12, 64, 128}) {
    const int64_t half = head / 2;
    const std::vector<float> x = random_numbers(head), angles = random_numbers(half);
    std::vector<float> cosines, sines, y = x;
    for (float angle : angles) cosines.push_back(std::cos(angle)), sines.push_back(std::sin(angle));
    ops().rotate(cosines.data(), sines.data(), head, y.data());
    bool right = true;
    for (int64_t i = 0; i < half; ++i) {
      const double a = x[static_cast<size_t>(i)], b = x[static_cast<size_t>(half + i)], c = cosines[static_cast<size_t>(i)], s = sines[static_cast<size_t>(i)];
      right = right && near(y[static_cast<size_t>(i)], a * c - b * s, 1e-6) && near(y[static_cast<size_t>(half + i)], b * c + a * s, 1e-6);
    }
    cases.expect(right, "rotation of a head of " + std::to_string(head));
  }
}

// B of a low-rank update, in panels of 16 rows, fp32 or bf16.
void check_raise(Cases& cases) {
  constexpr int64_t kOutputs = 150;
  for (bool is_bf16 : {false, true})
    for (int64_t rank : {1, 7, 24})
      for (int64_t tokens : {1, 4, 9}) {
        const int64_t size = (kOutputs + kPanel - 1) / kPanel * kPanel * rank;
        std::vector<float> b = random_numbers(size);
        std::vector<uint16_t> halves(static_cast<size_t>(size));
        narrow(b.data(), halves.data(), size);
        if (is_bf16) widen(halves.data(), b.data(), size);
        const std::vector<float> h = random_numbers(tokens * rank), before = random_numbers(tokens * kOutputs);
        std::vector<float> y = before;
        const Up up{is_bf16 ? static_cast<const void*>(halves.data()) : b.data(), is_bf16, rank};
        ops().raise(up, {h.data(), rank, y.data(), kOutputs, tokens}, 5, 140);
        bool right = true;
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t row = 0; row < kOutputs; ++row) {
            double expected = before[static_cast<size_t>(t * kOutputs + row)];
            for (int64_t r = 0; row >= 5 && row < 140 && r < rank; ++r)
              expected += b[static_cast<size_t>((row / kPanel * rank + r) * kPanel + row % kPanel)] * static_cast<double>(h[static_cast<size_t>(t * rank + r)]);
            right = right && near(y[static_cast<size_t>(t * kOutputs + row)], expected, 1e-5);
          }
        cases.expect(right, "raising " + std::to_string(tokens) + " tokens from rank " + std::to_string(rank));
      }
}

// A cache of one head, and its keys and values as it keeps them.
struct Memory {
  Memory(int64_t head, bool is_bf16, int64_t positions) : keys(random_numbers(positions * head)), values(random_numbers(positions * head)) {
    const int64_t padded = (head + 15) / 16 * 16;
    for (int64_t first = 0; first < positions; first += kBlock) blocks.emplace_back(static_cast<size_t>(kBlock * (head + padded) * (is_bf16 ? 2 : 4)));
    for (auto& block : blocks) places.push_back(block.data());
    cache = {places.data(), 0, head, padded, is_bf16};
    for (int64_t t = 0; t < positions; ++t) ops().remember(cache, t, keys.data() + t * head, values.data() + t * head);
    std::vector<uint16_t> halves(keys.size());
    for (auto* all : {&keys, &values})
      if (is_bf16) narrow(all->data(), halves.data(), positions * head), widen(halves.data(), all->data(), positions * head);
  }

  std::vector<float> keys, values;
  std::vector<std::vector<uint8_t>> blocks;
  std::vector<uint8_t*> places;
  Cached cache;
};

bool attends(const Memory& memory, const Queries& queries, int r) {
  const int64_t head = memory.cache.head;
  std::vector<double> weights, sums(static_cast<size_t>(head));
  double top = -1e300, total = 0;
  for (int64_t t = queries.first[r]; t < queries.last[r]; ++t) {
    double score = 0;
    for (int64_t i = 0; i < head; ++i) score += static_cast<double>(queries.query[r][i]) * memory.keys[static_cast<size_t>(t * head + i)];
    weights.push_back(score);
    top = std::fmax(top, score);
  }
  for (int64_t t = queries.first[r]; t < queries.last[r]; ++t) {
    const double weight = std::exp(weights[static_cast<size_t>(t - queries.first[r])] - top);
    total += weight;
    for (int64_t i = 0; i < head; ++i) sums[static_cast<size_t>(i)] += weight * memory.values[static_cast<size_t>(t * head + i)];
  }
  for (int64_t i = 0; i < head; ++i)
    if (!near(queries.output[r][i], sums[static_cast<size_t>(i)] / total, 1e-5)) return false;
  return true;
}

void check_attention(Cases& cases) {
  for (bool is_bf16 : {false, true})
    for (int64_t head : {8, 12, 64, 80, 256})
      for (int64_t positions : {1, 64, 150}) {
        const Memory memory(head, is_bf16, positions);
        for (int count = 1; count <= kMaxRows; ++count) {
          std::vector<float> query = random_numbers(count * head), output(query.size());
          for (float& one : query) one /= std::sqrt(static_cast<float>(head));  // as a decoder scales them
          Queries queries{count, {}, {}, {}, {}};
          for (int r = 0; r < count; ++r) {
            queries.query[r] = query.data() + r * head, queries.output[r] = output.data() + r * head;
            queries.last[r] = std::max<int64_t>(1, positions - r);
            queries.first[r] = r % 2 ? std::max<int64_t>(0, queries.last[r] - 70) : 0;  // a sliding window
          }
          ops().attend(memory.cache, queries);
          bool right = true;
          for (int r = 0; r < count; ++r) right = right && attends(memory, queries, r);
          cases.expect(right, "attention of " + std::to_string(count) + " queries, head of " + std::to_string(head) + ", " + std::to_string(positions) + " positions");
        }
      }
}

// A decoder of random weights with queries, keys, norms and updates of all kinds.
class Model {
 public:
  explicit Model(Values values) {
    generator.seed(7);  // the same model for every instruction set
    const auto weight = [&](int64_t rows, int64_t cols, double kept, Values kind) {
      all_.push_back(random_weight(kind, rows, cols, kept));
      return all_.back().matrix();
    };
    const auto numbers = [&](int64_t count) { return numbers_.emplace_back(random_numbers(count)).data(); };
    const auto linear = [&](int64_t rows, int64_t cols, int64_t rank) {
      Linear one;
      one.weight = weight(rows, cols, 0.2, values);
      one.bias = numbers(rows);
      if (rank > 0) one.up = {numbers((rows + 15) / 16 * 16 * rank), false, rank};
      return one;
    };
    Weights weights;
    for (int index = 0; index < 3; ++index) {
      Layer layer;
      layer.q = linear(48, 40, 3), layer.k = linear(24, 40, 0), layer.v = linear(24, 40, 0), layer.o = linear(40, 48, 2);
      layer.gate = linear(72, 40, 0), layer.up = linear(72, 40, 4), layer.down = linear(40, 72, 0);
      layer.down_attention = weight(3, 40, 2.0, values), layer.down_output = weight(2, 48, 2.0, values);
      layer.down_gate = weight(4, 40, 2.0, values);
      layer.input_norm = numbers(40), layer.output_norm = numbers(40), layer.query_norm = numbers(12), layer.key_norm = numbers(12);
      layer.window = index == 0 ? 70 : 0;
      if (index == 2) {  // a gated delta net, norms behind, residuals scaled
        layer.is_delta = true;
        layer.delta = {linear(56, 40, 3), linear(24, 40, 0), linear(2, 40, 0), linear(2, 40, 0), numbers(4 * 56), numbers(2), numbers(2), numbers(12)};
        for (int64_t head = 0; head < 2; ++head) const_cast<float*>(layer.delta.decay)[head] = -0.3f;  // a decay below 1
        layer.o = linear(40, 24, 2);
        layer.down_output = weight(2, 24, 2.0, values);
        layer.attention_norm = numbers(40), layer.forward_norm = numbers(40);
      }
      weights.layers.push_back(layer);
    }
    weights.delta = {2, 2, 8, 12, 4};
    weights.rotary = 8, weights.residual_scale = 0.8f, weights.is_gelu = true;
    weights.embeddings = numbers(50 * 40), weights.norm = numbers(40), weights.inverse_frequencies = numbers(6);
    weights.head = weight(50, 40, 2.0, values);
    decoder_.reset(new Decoder({3, 40, 72, 4, 2, 12, 50, 1e-6f, 0.3f, 1.0f, 200, 2, 64, false}, weights, pool_));
  }

  // The logits of a text: as a whole, or token by token.
  std::vector<float> logits(int64_t count, bool whole) {
    std::vector<int64_t> tokens;
    for (int64_t t = 0; t < count; ++t) tokens.push_back(t * 7 % 50);
    std::vector<float> result(static_cast<size_t>(count * 50));
    const int64_t sequence = 1, one = 1;
    if (whole)
      decoder_->score(tokens.data(), count, result.data());
    else
      for (int64_t t = 0; t < count; ++t) decoder_->step(&sequence, &one, 1, tokens.data() + t, result.data() + t * 50);
    return result;
  }

 private:
  std::list<Weight> all_;
  std::list<std::vector<float>> numbers_;
  Pool pool_{2};
  std::unique_ptr<Decoder> decoder_;
};

// Whether the logits differ by at most a share of the largest.
bool alike(const std::vector<float>& one, const std::vector<float>& other, double share) {
  double largest = 0, difference = 0;
  for (size_t i = 0; i < one.size(); ++i) largest = std::fmax(largest, std::fabs(one[i])), difference = std::fmax(difference, std::fabs(one[i] - other[i]));
  return std::isfinite(difference) && largest > 0 && difference <= share * largest;
}

// The portable path, which the Python tests compare with transformers, is the reference.
void check_decoder(Cases& cases) {
  for (Values values : kAllValues) {
    const bool rounds = values == Values::bf16 && (cases.isa == "avx512" || cases.isa == "amx");  // inputs to bf16
    const double share = rounds ? 0.2 : values == Values::i8 ? 1e-2 : 1e-3;
    choose_isa("portable");
    const std::vector<float> expected = Model(values).logits(150, true);
    choose_isa(cases.isa.c_str());
    Model model(values);
    const std::vector<float> whole = model.logits(150, true), steps = model.logits(150, false);
    const std::string name = "decoder of values " + std::to_string(static_cast<int>(values));
    cases.expect(alike(expected, whole, share), name + ": as the portable one");
    cases.expect(alike(whole, steps, share), name + ": token by token");
  }
}

void check_ops(Cases& cases) {
  check_elementwise(cases);
  check_convolution(cases);
  check_delta(cases);
  check_rotation(cases);
  check_raise(cases);
  check_attention(cases);
  check_decoder(cases);
}
