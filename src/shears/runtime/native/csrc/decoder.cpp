#include "decoder.h"

#include "layout.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace shears {

namespace {
constexpr int64_t kWorthThreads = 8192;  // multiplications; fewer take less time than waking a thread
constexpr int64_t kSteady = 4;           // rows from which on a row's bits do not depend on their number
constexpr int64_t kPiece = 256;          // outputs that one thread completes at a time; whole panels

/// Add bias and low-rank update to outputs [begin, end) of y; tokens.h holds the outputs of all A with this input.
void complete(const Ops& ops, const Linear& linear, Raised tokens, int64_t begin, int64_t end) {
  if (linear.bias != nullptr)
    for (int64_t t = 0; t < tokens.rows; ++t) ops.add(linear.bias + begin, end - begin, tokens.y + t * tokens.y_step + begin);
  if (linear.up.rank == 0) return;
  tokens.h += linear.first;
  ops.raise(linear.up, tokens, begin, end);
}

/// The rows of the next chunk of a prompt with `count` more tokens; at least kSteady follow, or none.
int64_t chunk_of(int64_t count, int64_t longest) {
  if (count <= longest) return count;
  return count - longest < kSteady && longest > kSteady ? longest - kSteady : longest;
}

int64_t attending(const Weights& weights) {
  return std::count_if(weights.layers.begin(), weights.layers.end(), [](const Layer& layer) { return !layer.is_delta; });
}

/// x = factor * x / sqrt(sum(x^2) + 1e-6)
void normalize_length(float* x, int64_t n, float factor) {
  float squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += x[i] * x[i];
  factor /= std::sqrt(squares + 1e-6f);
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

float softplus(float x) { return x > 20 ? x : std::log1p(std::exp(x)); }

int64_t runs_of(int64_t rows) { return (rows + kRaisedRows - 1) / kRaisedRows; }
}  // namespace

Decoder::Decoder(const DecoderShape& shape, Weights weights, Pool& pool)
    : shape_(shape),
      weights_(std::move(weights)),
      pool_(pool),
      ops_(ops()),
      cache_({attending(weights_), shape.kv_heads, shape.head, shape.bf16_cache}, shape.max_sequences + 1),
      rank_(0),
      half_((weights_.rotary > 0 ? weights_.rotary : shape.head) / 2) {
  for (const Layer& layer : weights_.layers)
    rank_ = std::max({rank_, layer.down_attention.rows, layer.down_output.rows, layer.down_gate.rows,
                      layer.down_down.rows});
  int64_t counts[2] = {0, 0};
  bool has_gate = false;
  for (const Layer& layer : weights_.layers) {
    slots_.push_back(counts[layer.is_delta]++);
    has_gate = has_gate || layer.query_gate.weight.rows > 0;
  }
  const int64_t rows = std::max(shape.chunk, shape.max_sequences);
  if (counts[1] > 0) {
    const DeltaShape& delta = weights_.delta;
    states_.resize(shape.max_sequences + 1);
    for (auto* buffer : {&mixed_input_, &mixed_output_}) buffer->resize(rows * delta.channels());
    for (auto* buffer : {&b_, &a_}) buffer->resize(rows * delta.value_heads);
    z_.resize(rows * delta.values());
  }
  if (has_gate) query_gate_.resize(rows * shape.heads * shape.head);
  for (auto* buffer : {&hidden_, &normed_, &output_}) buffer->resize(rows * shape.hidden);
  for (auto* buffer : {&query_, &mixed_}) buffer->resize(rows * shape.heads * shape.head);
  for (auto* buffer : {&key_, &value_}) buffer->resize(rows * shape.kv_heads * shape.head);
  for (auto* buffer : {&gate_, &up_}) buffer->resize(rows * shape.intermediate);
  local_ = rows * half_;
  for (auto* buffer : {&cosines_, &sines_}) buffer->resize(weights_.local_frequencies == nullptr ? local_ : 2 * local_);
  low_.resize(rows * rank_);
  for (auto* buffer : {&sequence_of_, &position_of_}) buffer->resize(rows);
}

template <class F>
void Decoder::each(int64_t count, int64_t work, const F& f) {
  if (count > 1 && work >= kWorthThreads)
    pool_.parallel_for(count, f);
  else
    for (int64_t i = 0; i < count; ++i) f(i);
}

/// Make room for `count` more positions of a sequence, and for its states.
void Decoder::reserve(int64_t sequence, int64_t count) {
  const int64_t numbers = (shape_.layers - attending(weights_)) * weights_.delta.state();
  if (numbers > 0 && states_[sequence].empty()) states_[sequence].resize(numbers);
  cache_.reserve(sequence, count);
}

void Decoder::drop(int64_t sequence) {
  cache_.drop(sequence);
  if (!states_.empty()) states_[sequence] = {};
}

void Decoder::copy(int64_t source, int64_t target, int64_t count) {
  if (!states_.empty()) states_[target] = states_[source];
  cache_.copy(source, target, count);
}

int64_t Decoder::cache_bytes() const {
  int64_t numbers = 0;
  for (const std::vector<float>& state : states_) numbers += static_cast<int64_t>(state.size());
  return cache_.bytes() + numbers * static_cast<int64_t>(sizeof(float));
}

void Decoder::prefill(int64_t sequence, const int64_t* tokens, int64_t count, float* logits) {
  reserve(sequence, count);
  for (int64_t start = 0, rows = 0; start < count; start += rows) {
    rows = chunk_of(count - start, shape_.chunk);
    run({{sequence, 0, rows}}, tokens + start, rows);
    if (start + rows == count) finish(rows - 1, 1, logits);
  }
}

void Decoder::step(const int64_t* sequences, const int64_t* counts, int64_t number, const int64_t* tokens, float* logits) {
  std::vector<Span> spans;
  int64_t rows = 0;
  for (int64_t i = 0; i < number; rows += counts[i++]) spans.push_back({sequences[i], rows, counts[i]});
  for (const Span& span : spans) reserve(span.sequence, span.count);
  run(spans, tokens, rows);
  finish(0, rows, logits);
}

void Decoder::score(const int64_t* tokens, int64_t count, float* logits) {
  const int64_t sequence = shape_.max_sequences;  // one beyond the numbers that callers may use
  drop(sequence);
  reserve(sequence, count);
  for (int64_t start = 0; start < count; start += shape_.chunk) {
    const int64_t rows = std::min(shape_.chunk, count - start);
    run({{sequence, 0, rows}}, tokens + start, rows);
    finish(0, rows, logits + start * shape_.vocabulary);
  }
  drop(sequence);
}

/// Compute all layers for the next tokens of some sequences, and put their keys and values into the cache.
void Decoder::run(const std::vector<Span>& spans, const int64_t* tokens, int64_t rows) {
  embed(spans, tokens, rows);
  for (int64_t index = 0; index < shape_.layers; ++index) {
    const Layer& layer = weights_.layers[index];
    layer.is_delta ? delta(layer, slots_[index], spans, rows) : attention(layer, slots_[index], spans, rows);
    settle(layer.o, layer.down_output, layer.is_delta ? z_.data() : mixed_.data(), layer.attention_norm, layer.output_norm, rows);
    feed_forward(layer, rows);
    const bool is_last = index + 1 == shape_.layers;
    settle(layer.down, layer.down_down, gate_.data(), layer.forward_norm,
           is_last ? weights_.norm : weights_.layers[index + 1].input_norm, rows);
  }
  for (const Span& span : spans) cache_.advance(span.sequence, span.count);
}

/// Compute every row's embedding, its norm, and the cosines and sines of its position.
void Decoder::embed(const std::vector<Span>& spans, const int64_t* tokens, int64_t rows) {
  for (const Span& span : spans)
    for (int64_t i = 0; i < span.count; ++i) {
      sequence_of_[span.first + i] = span.sequence;
      position_of_[span.first + i] = cache_.length(span.sequence) + i;
    }
  const int64_t width = shape_.hidden;
  const auto set_angles = [&](int64_t row, const float* frequencies, int64_t start) {
    for (int64_t i = 0; i < half_; ++i) {
      const float angle = static_cast<float>(position_of_[row]) * frequencies[i];
      cosines_[start + row * half_ + i] = std::cos(angle) * shape_.rope_scale;
      sines_[start + row * half_ + i] = std::sin(angle) * shape_.rope_scale;
    }
  };
  each(rows, rows * width, [&](int64_t row) {
    float* x = hidden_.data() + row * width;
    look_up(tokens[row], x);
    if (weights_.embedding_scale != 1.0f) ops_.scale(weights_.embedding_scale, width, x);
    normalize(x, weights_.layers[0].input_norm, normed_.data() + row * width);
    set_angles(row, weights_.inverse_frequencies, 0);
    if (weights_.local_frequencies != nullptr) set_angles(row, weights_.local_frequencies, local_);
  });
}

/// y = the norm of one row [H], or the row itself where there is no norm.
void Decoder::normalize(const float* x, const float* norm, float* y) const {
  if (norm != nullptr)
    ops_.rms_norm(x, norm, shape_.eps, shape_.hidden, y);
  else
    std::copy_n(x, shape_.hidden, y);
}

void Decoder::look_up(int64_t token, float* x) {
  const int64_t width = shape_.hidden, start = token * width;
  switch (weights_.embedding_values) {
    case Values::f32: std::copy_n(static_cast<const float*>(weights_.embeddings) + start, width, x); break;
    case Values::bf16: ops_.widen(static_cast<const uint16_t*>(weights_.embeddings) + start, width, x); break;
    case Values::i8: {
      const int8_t* steps = static_cast<const int8_t*>(weights_.embeddings) + start;
      const float scale = static_cast<const float*>(weights_.embedding_scales)[token];
      for (int64_t i = 0; i < width; ++i) x[i] = static_cast<float>(steps[i]) * scale;
      break;
    }
    case Values::i4: {
      const uint8_t* pairs = static_cast<const uint8_t*>(weights_.embeddings) + token * ((width + 1) / 2);
      const uint16_t* scales = static_cast<const uint16_t*>(weights_.embedding_scales) + token * blocks(width);
      const uint8_t* zeros = weights_.embedding_zeros + token * blocks(width);
      for (int64_t i = 0; i < width; ++i) {
        const int64_t block = i / kBlockInputs;
        x[i] = from_half(scales[block]) * static_cast<float>((pairs[i / 2] >> (i % 2 * 4) & 15) - zeros[block]);
      }
      break;
    }
  }
}

/// Compute y of several linears without bias and update, and A x of their updates into low_.
void Decoder::product(std::initializer_list<const Linear*> linears, const Matrix& down, const float* x,
                      std::initializer_list<float*> y, int64_t rows) {
  const Matrix* matrices[5];
  float* outputs[5];
  int count = 0;
  const auto* output = y.begin();
  for (const Linear* linear : linears) {
    if (linear->weight.rows > 0) matrices[count] = &linear->weight, outputs[count++] = *output;  // none: no such linear
    ++output;
  }
  if (down.rows > 0) {
    matrices[count] = &down;
    outputs[count++] = low_.data();
  }
  multiply_many(matrices, count, x, rows, outputs, pool_);
}

void Decoder::attention(const Layer& layer, int64_t index, const std::vector<Span>& spans, int64_t rows) {
  product({&layer.q, &layer.k, &layer.v, &layer.query_gate}, layer.down_attention, normed_.data(),
          {query_.data(), key_.data(), value_.data(), query_gate_.data()}, rows);
  if (layer.whole) normalize_whole(layer, rows);
  const int64_t kv = shape_.kv_heads, group = shape_.heads / kv;
  if (rows == static_cast<int64_t>(spans.size())) {  // one row per sequence: no row depends on another
    each(rows * kv, kWorthThreads, [&](int64_t item) {
      prepare(layer, index, item / kv, 1, item % kv);
      for (int64_t tile = 0; tile * kMaxRows < group; ++tile) attend(layer, index, spans[item / kv], item % kv, tile);
    });
    return;
  }
  each(runs_of(rows) * kv, kWorthThreads, [&](int64_t item) {
    const int64_t row = item / kv * kRaisedRows;
    prepare(layer, index, row, std::min<int64_t>(kRaisedRows, rows - row), item % kv);
  });
  for (const Span& span : spans) {
    const int64_t tiles = (span.count * group + kMaxRows - 1) / kMaxRows;
    each(tiles * kv, kWorthThreads, [&](int64_t item) { attend(layer, index, span, item / tiles, item % tiles); });
  }
}

/// A gated delta net: its outputs, gated, are in z_.
void Decoder::delta(const Layer& layer, int64_t slot, const std::vector<Span>& spans, int64_t rows) {
  const DeltaShape& shape = weights_.delta;
  const DeltaNet& net = layer.delta;
  product({&net.qkv, &net.z, &net.b, &net.a}, layer.down_attention, normed_.data(),
          {mixed_input_.data(), z_.data(), b_.data(), a_.data()}, rows);
  const int64_t heads = shape.value_heads, keys = shape.keys(), channels = shape.channels(), values = shape.values();
  each(runs_of(rows), rows * channels, [&](int64_t item) {
    const int64_t row = item * kRaisedRows, count = std::min<int64_t>(kRaisedRows, rows - row);
    const int64_t down = layer.down_attention.rows;
    const auto whole = [&](const Linear& linear, std::vector<float>& y, int64_t width) {
      complete(ops_, linear, {low_.data() + row * down, down, y.data() + row * width, width, count}, 0, width);
    };
    whole(net.qkv, mixed_input_, channels);
    whole(net.z, z_, values);
    whole(net.b, b_, heads);
    whole(net.a, a_, heads);
  });
  convolve(layer, slot, spans, rows);
  each(static_cast<int64_t>(spans.size()) * heads, kWorthThreads, [&](int64_t item) {
    const Span& span = spans[item / heads];
    const int64_t head = item % heads, key = head / (heads / shape.key_heads) * shape.key_size;
    float* state = states_[span.sequence].data() + slot * shape.state() + shape.history() +
                   head * shape.key_size * shape.value_size;
    std::vector<float> output(shape.value_size);
    for (int64_t row = span.first; row < span.first + span.count; ++row) {
      const float* mixed = mixed_output_.data() + row * channels;
      const float decay = std::exp(net.decay[head] * softplus(a_[row * heads + head] + net.step_bias[head]));
      const float beta = 1 / (1 + std::exp(-b_[row * heads + head]));
      ops_.delta({state, mixed + key, mixed + keys + key, mixed + 2 * keys + head * shape.value_size, decay, beta,
                  shape.key_size, shape.value_size, output.data()});
      ops_.rms_norm(output.data(), net.norm, shape_.eps, shape.value_size, output.data());
      ops_.swiglu(output.data(), shape.value_size, z_.data() + row * values + head * shape.value_size);
    }
  });
}

/// Convolve the inputs of a gated delta net along the text, remember the last ones, and normalize queries and keys.
void Decoder::convolve(const Layer& layer, int64_t slot, const std::vector<Span>& spans, int64_t rows) {
  const DeltaShape& shape = weights_.delta;
  const int64_t channels = shape.channels(), before = shape.window - 1;
  const auto history = [&](int64_t sequence) { return states_[sequence].data() + slot * shape.state(); };
  each(rows, rows * channels, [&](int64_t row) {
    const int64_t sequence = sequence_of_[row], behind = position_of_[row] - cache_.length(sequence);  // in its span
    std::vector<const float*> inputs(shape.window);
    for (int64_t j = 0; j <= before; ++j) {
      const int64_t back = before - j;
      inputs[j] = back <= behind ? mixed_input_.data() + (row - back) * channels
                                 : history(sequence) + (before + behind - back) * channels;
    }
    float* mixed = mixed_output_.data() + row * channels;
    ops_.convolve(inputs.data(), layer.delta.kernel, shape.window, channels, mixed);
    const float scale = 1 / std::sqrt(static_cast<float>(shape.key_size));
    for (int64_t head = 0; head < 2 * shape.key_heads; ++head)
      normalize_length(mixed + head * shape.key_size, shape.key_size, head < shape.key_heads ? scale : 1);
  });
  for (const Span& span : spans) {
    float* kept = history(span.sequence);
    const int64_t stay = std::max<int64_t>(before - span.count, 0), moved = before - stay;
    std::copy(kept + moved * channels, kept + before * channels, kept);
    std::copy_n(mixed_input_.data() + (span.first + span.count - moved) * channels, moved * channels,
                kept + stay * channels);
  }
}

/// Complete queries and keys of all heads, and normalize each over all of them.
void Decoder::normalize_whole(const Layer& layer, int64_t rows) {
  const int64_t down = layer.down_attention.rows;
  const auto whole = [&](const Linear& linear, const float* norm, std::vector<float>& y, int64_t width, int64_t row,
                         int64_t count) {
    float* first = y.data() + row * width;
    complete(ops_, linear, {low_.data() + row * down, down, first, width, count}, 0, width);
    for (int64_t i = 0; norm != nullptr && i < count * width; i += width)
      ops_.rms_norm(first + i, norm, shape_.eps, width, first + i);
  };
  each(runs_of(rows), rows * shape_.heads * shape_.head, [&](int64_t item) {
    const int64_t row = item * kRaisedRows, count = std::min<int64_t>(kRaisedRows, rows - row);
    whole(layer.q, layer.query_norm, query_, shape_.heads * shape_.head, row, count);
    whole(layer.k, layer.key_norm, key_, shape_.kv_heads * shape_.head, row, count);
  });
}

/// Complete queries, key and value of some rows and one key-value head; then `turn` each row.
void Decoder::prepare(const Layer& layer, int64_t index, int64_t first, int64_t count, int64_t kv_head) {
  const int64_t head = shape_.head, queries = shape_.heads / shape_.kv_heads * head;
  const int64_t down = layer.down_attention.rows;
  const auto raised = [&](std::vector<float>& y, int64_t step) {
    return Raised{low_.data() + first * down, down, y.data() + first * step, step, count};
  };
  if (!layer.whole) {
    complete(ops_, layer.q, raised(query_, shape_.heads * head), kv_head * queries, (kv_head + 1) * queries);
    complete(ops_, layer.k, raised(key_, shape_.kv_heads * head), kv_head * head, (kv_head + 1) * head);
  }
  complete(ops_, layer.v, raised(value_, shape_.kv_heads * head), kv_head * head, (kv_head + 1) * head);
  if (!query_gate_.empty())
    complete(ops_, layer.query_gate, raised(query_gate_, shape_.heads * head), kv_head * queries, (kv_head + 1) * queries);
  for (int64_t row = first; row < first + count; ++row) turn(layer, index, row, kv_head);
}

/// Normalize and rotate one row's queries and key of one key-value head; put key and value into the cache.
void Decoder::turn(const Layer& layer, int64_t index, int64_t row, int64_t kv_head) {
  const int64_t head = shape_.head, group = shape_.heads / shape_.kv_heads;
  const int64_t angles = (layer.is_local ? local_ : 0) + row * half_;
  float* queries = query_.data() + row * shape_.heads * head;
  float* keys = key_.data() + row * shape_.kv_heads * head;
  float* values = value_.data() + row * shape_.kv_heads * head;
  const auto turned = [&](float* x, const float* norm) {
    if (norm != nullptr && !layer.whole) ops_.rms_norm(x, norm, shape_.eps, head, x);
    if (layer.rotates) ops_.rotate(cosines_.data() + angles, sines_.data() + angles, 2 * half_, x);
  };
  for (int64_t i = kv_head * group; i < (kv_head + 1) * group; ++i) {
    turned(queries + i * head, layer.query_norm);
    ops_.scale(shape_.query_scale, head, queries + i * head);
  }
  turned(keys + kv_head * head, layer.key_norm);
  ops_.remember(cache_.at(sequence_of_[row], index, kv_head), position_of_[row], keys + kv_head * head,
                values + kv_head * head);
}

/// Attention of a tile of (row, query) pairs of one key-value head.
void Decoder::attend(const Layer& layer, int64_t index, const Span& span, int64_t kv_head, int64_t tile) {
  const int64_t group = shape_.heads / shape_.kv_heads, width = shape_.heads * shape_.head;
  const int64_t begin = tile * kMaxRows, end = std::min<int64_t>(begin + kMaxRows, span.count * group);
  Queries queries{static_cast<int>(end - begin), {}, {}, {}, {}};
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = span.first + i / group, offset = row * width + (kv_head * group + i % group) * shape_.head;
    queries.query[i - begin] = query_.data() + offset;
    queries.output[i - begin] = mixed_.data() + offset;
    queries.last[i - begin] = position_of_[row] + 1;
    queries.first[i - begin] = layer.window > 0 ? std::max<int64_t>(position_of_[row] + 1 - layer.window, 0) : 0;
  }
  ops_.attend(cache_.at(span.sequence, index, kv_head), queries);
  for (int64_t i = 0; layer.query_gate.weight.rows > 0 && i < end - begin; ++i)
    ops_.gate(query_gate_.data() + (queries.output[i] - mixed_.data()), shape_.head, queries.output[i]);
}

void Decoder::feed_forward(const Layer& layer, int64_t rows) {
  product({&layer.gate, &layer.up}, layer.down_gate, normed_.data(), {gate_.data(), up_.data()}, rows);
  const int64_t width = shape_.intermediate, pieces = (width + kPiece - 1) / kPiece;
  each(runs_of(rows) * pieces, rows * width, [&](int64_t item) {
    const int64_t row = item / pieces * kRaisedRows, count = std::min<int64_t>(kRaisedRows, rows - row);
    const int64_t begin = item % pieces * kPiece, end = std::min(begin + kPiece, width), down = layer.down_gate.rows;
    const float* low = low_.data() + row * down;
    float *gate = gate_.data() + row * width, *up = up_.data() + row * width;
    complete(ops_, layer.gate, {low, down, gate, width, count}, begin, end);
    complete(ops_, layer.up, {low, down, up, width, count}, begin, end);
    const auto activate = weights_.is_gelu ? ops_.geglu : ops_.swiglu;
    for (int64_t i = begin; i < count * width; i += width) activate(up + i, end - begin, gate + i);
  });
}

/// The last linear of attention or feed-forward: normalize and scale its output where the model does, add it to the
/// residual, then compute the next norm.
void Decoder::settle(const Linear& linear, const Matrix& down, const float* x, const float* own_norm,
                     const float* next_norm, int64_t rows) {
  product({&linear}, down, x, {output_.data()}, rows);
  const int64_t width = shape_.hidden;
  each(runs_of(rows), rows * width, [&](int64_t item) {
    const int64_t row = item * kRaisedRows, count = std::min<int64_t>(kRaisedRows, rows - row);
    float *output = output_.data() + row * width, *hidden = hidden_.data() + row * width;
    complete(ops_, linear, {low_.data() + row * down.rows, down.rows, output, width, count}, 0, width);
    for (int64_t i = 0; own_norm != nullptr && i < count * width; i += width)
      ops_.rms_norm(output + i, own_norm, shape_.eps, width, output + i);
    if (weights_.residual_scale != 1.0f) ops_.scale(weights_.residual_scale, count * width, output);
    ops_.add(output, count * width, hidden);
    for (int64_t i = 0; i < count * width; i += width)
      normalize(hidden + i, next_norm, normed_.data() + row * width + i);
  });
}

void Decoder::finish(int64_t first, int64_t rows, float* logits) {
  multiply(weights_.head, normed_.data() + first * shape_.hidden, rows, logits, pool_);
  if (weights_.logit_scale != 1.0f) ops_.scale(weights_.logit_scale, rows * shape_.vocabulary, logits);
}

}  // namespace shears
