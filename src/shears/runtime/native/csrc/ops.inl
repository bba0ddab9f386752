// The functions of `Ops` apart from attention. Included like simd.inl.

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  Vec squares[2] = {Vec{}, Vec{}};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Vec a = load(x + i), b = load(x + i + kLanes);
    squares[0] += a * a;
    squares[1] += b * b;
  }
  float total = sum(squares[0] + squares[1]);
  for (; i < n; ++i) total += x[i] * x[i];
  const float factor = 1.0f / __builtin_sqrtf(total / static_cast<float>(n) + eps);
  for (i = 0; i + kLanes <= n; i += kLanes) store(y + i, load(weight + i) * (load(x + i) * factor));
  for (; i < n; ++i) y[i] = weight[i] * (x[i] * factor);
}

void add(const float* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) + load(x + i));
  for (; i < n; ++i) y[i] += x[i];
}

struct SiluTimes {
  Vec operator()(Vec gate, Vec up) const { return gate / (1.0f + exponential(-gate)) * up; }
};

/// (1 + tanh(z)) / 2 is 1 / (1 + exp(-2 z)); z = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTimes {
  Vec operator()(Vec gate, Vec up) const {
    const Vec doubled = gate * (1.59576912f + 0.0713548163f * (gate * gate));
    return gate / (1.0f + exponential(-doubled)) * up;
  }
};

template <class F>
inline void gated(const F& f, const float* up, int64_t n, float* gate) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(gate + i, f(load(gate + i), load(up + i)));
  if (i == n) return;
  float rest[2][kLanes] = {};
  const size_t bytes = sizeof(float) * static_cast<size_t>(n - i);
  std::memcpy(rest[0], gate + i, bytes);
  std::memcpy(rest[1], up + i, bytes);
  store(rest[0], f(load(rest[0]), load(rest[1])));
  std::memcpy(gate + i, rest[0], bytes);
}

void swiglu(const float* up, int64_t n, float* gate) { gated(SiluTimes{}, up, n, gate); }

void geglu(const float* up, int64_t n, float* gate) { gated(GeluTimes{}, up, n, gate); }

struct SigmoidTimes {
  Vec operator()(Vec y, Vec gate) const { return y / (1.0f + exponential(-gate)); }
};

void gate(const float* gate, int64_t n, float* y) { gated(SigmoidTimes{}, gate, n, y); }

void convolve(const float* const* x, const float* weights, int64_t size, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = weights[i] * x[0][i];
  for (int64_t j = 1; j < size; ++j) {
    const float *row = x[j], *weight = weights + j * n;
    for (int64_t i = 0; i < n; ++i) y[i] += weight[i] * row[i];
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, SigmoidTimes{}(load(y + i), load(y + i)));
  if (i < n) {
    float rest[kLanes] = {};
    std::memcpy(rest, y + i, sizeof(float) * static_cast<size_t>(n - i));
    store(rest, SigmoidTimes{}(load(rest), load(rest)));
    std::memcpy(y + i, rest, sizeof(float) * static_cast<size_t>(n - i));
  }
}

/// Columns [begin, begin + kParts * lanes) of the state.
template <int kParts>
inline void delta_columns(const DeltaStep& step, int64_t begin) {
  Vec known[kParts] = {}, total[kParts] = {}, change[kParts];
  const Vec decay = all(step.decay);
  for (int64_t i = 0; i < step.key_size; ++i)
    for (int p = 0; p < kParts; ++p) {
      float* place = step.state + i * step.value_size + begin + p * kLanes;
      const Vec faded = load(place) * decay;
      store(place, faded);
      known[p] += step.key[i] * faded;
    }
  for (int p = 0; p < kParts; ++p) change[p] = (load(step.value + begin + p * kLanes) - known[p]) * step.beta;
  for (int64_t i = 0; i < step.key_size; ++i)
    for (int p = 0; p < kParts; ++p) {
      float* place = step.state + i * step.value_size + begin + p * kLanes;
      const Vec now = load(place) + step.key[i] * change[p];
      store(place, now);
      total[p] += step.query[i] * now;
    }
  for (int p = 0; p < kParts; ++p) store(step.output + begin + p * kLanes, total[p]);
}

void delta(const DeltaStep& step) {
  int64_t begin = 0;
  for (; begin + 4 * kLanes <= step.value_size; begin += 4 * kLanes) delta_columns<4>(step, begin);
  for (; begin + kLanes <= step.value_size; begin += kLanes) delta_columns<1>(step, begin);
  for (; begin < step.value_size; ++begin) {
    float known = 0, total = 0;
    for (int64_t i = 0; i < step.key_size; ++i) {
      float& place = step.state[i * step.value_size + begin];
      place *= step.decay;
      known += step.key[i] * place;
    }
    const float change = (step.value[begin] - known) * step.beta;
    for (int64_t i = 0; i < step.key_size; ++i) {
      float& place = step.state[i * step.value_size + begin];
      place += step.key[i] * change;
      total += step.query[i] * place;
    }
    step.output[begin] = total;
  }
}

/// Several panels at a time, so that no addition waits for the one before; `out` is [kRows][kPanels * kPanel].
template <class T, int kPanels, int kRows>
inline void raise_panels(const T* data, const float* h, int64_t h_step, int64_t rank, float* out) {
  constexpr int kParts = kPanel / kLanes;
  constexpr int64_t kAhead = 8192 / sizeof(T);  // how much a core reads during the latency of memory
  Vec total[kRows][kPanels * kParts] = {};
  for (int64_t r = 0; r < rank; ++r) {
    Vec value[kRows];
    for (int t = 0; t < kRows; ++t) value[t] = all(h[t * h_step + r]);
    for (int p = 0; p < kPanels; ++p) __builtin_prefetch(data + (p * rank + r) * kPanel + kAhead);
    for (int p = 0; p < kPanels; ++p)
      for (int part = 0; part < kParts; ++part) {
        const Vec weights = load(data + (p * rank + r) * kPanel + part * kLanes);
        for (int t = 0; t < kRows; ++t) total[t][p * kParts + part] += value[t] * weights;
      }
  }
  for (int t = 0; t < kRows; ++t)
    for (int i = 0; i < kPanels * kParts; ++i) store(out + t * kPanels * kPanel + i * kLanes, total[t][i]);
}

/// Rows [row, row + kRows) of the tokens.
template <class T, int kRows>
inline void raise_rows(const Up& up, const Raised& tokens, int64_t row, int64_t begin, int64_t end) {
  constexpr int kTogether = kLanes == 16 ? 4 : 1;
  float out[kRows * kTogether * kPanel];
  const float* h = tokens.h + row * tokens.h_step;
  float* y = tokens.y + row * tokens.y_step;
  for (int64_t panel = begin / kPanel; panel * kPanel < end;) {
    const T* data = static_cast<const T*>(up.data) + panel * up.rank * kPanel;
    const int count = (panel + kTogether) * kPanel <= end ? kTogether : 1;
    if (count == 1)
      raise_panels<T, 1, kRows>(data, h, tokens.h_step, up.rank, out);
    else
      raise_panels<T, kTogether, kRows>(data, h, tokens.h_step, up.rank, out);
    const int64_t start = panel * kPanel, first = larger_of(begin, start), last = smaller_of(end, start + count * kPanel);
    for (int t = 0; t < kRows; ++t)
      add(out + t * count * kPanel + first - start, last - first, y + t * tokens.y_step + first);
    panel += count;
  }
}

template <class T>
inline void raise_as(const Up& up, const Raised& tokens, int64_t begin, int64_t end) {
  int64_t row = 0;
  for (; row + kRaisedRows <= tokens.rows; row += kRaisedRows) raise_rows<T, kRaisedRows>(up, tokens, row, begin, end);
  for (; row < tokens.rows; ++row) raise_rows<T, 1>(up, tokens, row, begin, end);
}

void raise(const Up& up, const Raised& tokens, int64_t begin, int64_t end) {
  if (up.is_bf16)
    raise_as<uint16_t>(up, tokens, begin, end);
  else
    raise_as<float>(up, tokens, begin, end);
}

void rotate(const float* cosines, const float* sines, int64_t head, float* x) {
  const int64_t half = head / 2;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i);
    store(x + i, a * c - b * s);
    store(x + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cosines[i] - b * sines[i];
    x[half + i] = b * cosines[i] + a * sines[i];
  }
}

void scale(float factor, int64_t n, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

void widen(const uint16_t* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = to_float(x[i]);
}
