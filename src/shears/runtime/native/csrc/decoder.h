// A decoder like Llama, with what its relatives do differently: the whole step from token ids to logits.
//
// Letters: H hidden, I intermediate, D length of a head, G queries per key-value head, M rows (tokens) computed
// together.
#pragma once

#include <cstdint>
#include <vector>

#include "cache.h"
#include "kernels.h"
#include "ops.h"

namespace shears {

struct DecoderShape {
  int64_t layers, hidden, intermediate, heads, kv_heads, head, vocabulary;
  float eps, query_scale, rope_scale;  // rope_scale: factor of cosines and sines
  int64_t max_length, max_sequences, chunk;  // chunk: the most rows computed together
  bool bf16_cache;
};

/// A linear with its bias and low-rank update: y = W x + bias + B (A x)[first, first + rank).
struct Linear {
  Matrix weight{};
  const float* bias = nullptr;
  Up up{};
  int64_t first = 0;  // the first output of its A among the outputs of all A with the same input
};

/// The sizes of gated delta nets, which are those of all such layers; 0 without any.
struct DeltaShape {
  int64_t key_heads = 0, value_heads = 0, key_size = 0, value_size = 0, window = 0;  // window: inputs of a convolution
  int64_t keys() const { return key_heads * key_size; }
  int64_t values() const { return value_heads * value_size; }
  int64_t channels() const { return 2 * keys() + values(); }
  int64_t history() const { return (window - 1) * channels(); }
  int64_t state() const { return history() + value_heads * key_size * value_size; }  // numbers of a layer and sequence
};

/// A layer that keeps a state instead of keys and values; `o` of its layer is the last linear.
struct DeltaNet {
  Linear qkv, z, b, a;
  const float *kernel = nullptr;  // [window, channels]
  const float *decay = nullptr, *step_bias = nullptr;  // [value_heads]; the decay's logarithm is decay * softplus(a + bias)
  const float *norm = nullptr;    // [value_size]
};

struct Layer {
  Linear q, k, v, o, gate, up, down;
  Linear query_gate;  // of attention's output, if it has a weight
  DeltaNet delta;
  bool is_delta = false;
  Matrix down_attention{}, down_output{}, down_gate{}, down_down{};  // the A of all linears with one input; 0 rows: none
  const float *input_norm = nullptr, *output_norm = nullptr;         // [H], before attention and feed-forward, or null
  const float *attention_norm = nullptr, *forward_norm = nullptr;    // [H], of the outputs of both, or null
  const float *query_norm = nullptr, *key_norm = nullptr;            // [D], of all heads at once if `whole`, or null
  int64_t window = 0;                                                // 0: a query sees every position
  bool rotates = true;
  bool whole = false;                                                // queries and keys have one norm over all heads
  bool is_local = false;                                             // rotates by the local frequencies
};

/// The caller owns the memory: every pointer must outlive the decoder.
struct Weights {
  std::vector<Layer> layers;
  Values embedding_values = Values::f32;
  const void* embeddings = nullptr;            // [V, H], row by row; of i4 [V, (H + 1) / 2] bytes
  const void* embedding_scales = nullptr;      // [V] fp32 of i8, [V, blocks] fp16 of i4
  const uint8_t* embedding_zeros = nullptr;    // [V, blocks] of i4, a byte each
  const float* norm = nullptr;              // [H]
  const float* inverse_frequencies = nullptr;  // [R / 2]
  const float* local_frequencies = nullptr;    // [R / 2] of local layers, or null
  int64_t rotary = 0;                          // R, the first numbers of a head, which rotate; 0: all
  float embedding_scale = 1, residual_scale = 1, logit_scale = 1;
  bool is_gelu = false;  // in the feed-forward; else silu
  DeltaShape delta;
  Matrix head{};                            // [V, H]
};

/// One thread at a time. The caller checks that sequence numbers, lengths and token ids are in range.
class Decoder {
 public:
  Decoder(const DecoderShape& shape, Weights weights, Pool& pool);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  /// Append tokens to one sequence; write the logits [V] after the last.
  void prefill(int64_t sequence, const int64_t* tokens, int64_t count, float* logits);
  /// Append counts[i] tokens to each of several different sequences; write the logits after every token, a row for
  /// each. All tokens together are at most `chunk`, or one for each of max_sequences.
  void step(const int64_t* sequences, const int64_t* counts, int64_t number, const int64_t* tokens, float* logits);
  /// Write the logits [count, V] of a text without keeping it in any sequence.
  void score(const int64_t* tokens, int64_t count, float* logits);
  void drop(int64_t sequence);
  /// Forget all but the first `length` tokens of a sequence, which has as many; not with gated delta nets.
  void shorten(int64_t sequence, int64_t length) { cache_.shorten(sequence, length); }
  /// Let an empty sequence begin with the first `count` tokens of another, whose keys and values are copied; with gated
  /// delta nets, all of its tokens.
  void copy(int64_t source, int64_t target, int64_t count);

  const DecoderShape& shape() const { return shape_; }
  int64_t length(int64_t sequence) const { return cache_.length(sequence); }
  int64_t cache_bytes() const;

 private:
  /// Rows [first, first + count) are the next tokens of a sequence.
  struct Span {
    int64_t sequence, first, count;
  };

  void run(const std::vector<Span>& spans, const int64_t* tokens, int64_t rows);
  void embed(const std::vector<Span>& spans, const int64_t* tokens, int64_t rows);
  void look_up(int64_t token, float* x);
  void attention(const Layer& layer, int64_t index, const std::vector<Span>& spans, int64_t rows);
  void delta(const Layer& layer, int64_t slot, const std::vector<Span>& spans, int64_t rows);
  void convolve(const Layer& layer, int64_t slot, const std::vector<Span>& spans, int64_t rows);
  void reserve(int64_t sequence, int64_t count);
  void normalize_whole(const Layer& layer, int64_t rows);
  void prepare(const Layer& layer, int64_t index, int64_t first, int64_t count, int64_t kv_head);
  void turn(const Layer& layer, int64_t index, int64_t row, int64_t kv_head);
  void attend(const Layer& layer, int64_t index, const Span& span, int64_t kv_head, int64_t tile);
  void feed_forward(const Layer& layer, int64_t rows);
  void normalize(const float* x, const float* norm, float* y) const;
  void settle(const Linear& linear, const Matrix& down, const float* x, const float* own_norm, const float* next_norm,
              int64_t rows);
  void product(std::initializer_list<const Linear*> linears, const Matrix& down, const float* x,
               std::initializer_list<float*> y, int64_t rows);
  void finish(int64_t first, int64_t rows, float* logits);
  template <class F>
  void each(int64_t count, int64_t work, const F& f);

  DecoderShape shape_;
  Weights weights_;
  Pool& pool_;
  const Ops& ops_;
  Cache cache_;
  int64_t rank_;  // the most outputs of the A of linears with one input
  std::vector<int64_t> slots_;  // of each layer among those that attend, or among those with a state
  std::vector<std::vector<float>> states_;  // of each sequence: for every layer with one, history, then heads
  std::vector<float> mixed_input_, mixed_output_, query_gate_, b_, a_;
  int64_t half_;  // of the numbers of a head that rotate
  int64_t local_;  // where the local angles begin in cosines_ and sines_
  std::vector<float> hidden_, normed_, query_, key_, value_, mixed_, z_, gate_, up_, output_, low_, cosines_, sines_;
  std::vector<int64_t> sequence_of_, position_of_;  // of each row
};

}  // namespace shears
