// shears.runtime.native._native.Decoder, and the description of a model from which it is made. Addresses are integers;
// Python (runtime/native/decoder.py) checks them and keeps their memory alive.
#include "decoder_binding.h"

#include <nanobind/stl/string.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "decoder.h"

namespace nb = nanobind;

namespace shears {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Layer& last_layer(Weights& weights) {
  if (weights.layers.empty()) throw std::invalid_argument("a layer must be added first");
  return weights.layers.back();
}

void add_layer(Weights& weights, Address input_norm, Address output_norm, Address query_norm, Address key_norm, int64_t window,
               bool rotates) {
  Layer layer;
  layer.input_norm = at<float>(input_norm);
  layer.output_norm = at<float>(output_norm);
  layer.query_norm = at<float>(query_norm);
  layer.key_norm = at<float>(key_norm);
  layer.window = window;
  layer.rotates = rotates;
  weights.layers.push_back(layer);
}

/// What the last layer does differently from Llama's.
void vary_layer(Weights& weights, Address attention_norm, Address forward_norm, bool whole, bool is_local) {
  Layer& layer = last_layer(weights);
  layer.attention_norm = at<float>(attention_norm);
  layer.forward_norm = at<float>(forward_norm);
  layer.whole = whole;
  layer.is_local = is_local;
}

/// What all layers and the ends do differently from Llama's.
void vary_model(Weights& weights, bool is_gelu, int64_t rotary, Address local_frequencies, float embedding_scale, float residual_scale,
                float logit_scale) {
  weights.is_gelu = is_gelu;
  weights.rotary = rotary;
  weights.local_frequencies = at<float>(local_frequencies);
  weights.embedding_scale = embedding_scale;
  weights.residual_scale = residual_scale;
  weights.logit_scale = logit_scale;
}

/// Let the last layer be a gated delta net.
void set_delta(Weights& weights, Address kernel, Address decay, Address step_bias, Address norm) {
  Layer& layer = last_layer(weights);
  layer.is_delta = true;
  layer.delta.kernel = at<float>(kernel);
  layer.delta.decay = at<float>(decay);
  layer.delta.step_bias = at<float>(step_bias);
  layer.delta.norm = at<float>(norm);
}

void set_delta_shape(Weights& weights, int64_t key_heads, int64_t value_heads, int64_t key_size, int64_t value_size, int64_t window) {
  weights.delta = {key_heads, value_heads, key_size, value_size, window};
}

Linear& linear_of(Layer& layer, const std::string& name) {
  const std::pair<const char*, Linear*> linears[] = {{"q_proj", &layer.q},       {"k_proj", &layer.k},   {"v_proj", &layer.v},
                                                     {"o_proj", &layer.o},       {"gate_proj", &layer.gate}, {"up_proj", &layer.up},
                                                     {"down_proj", &layer.down},
                                                     {"q_gate", &layer.query_gate},  {"out_proj", &layer.o},
                                                     {"in_proj_qkv", &layer.delta.qkv}, {"in_proj_z", &layer.delta.z},
                                                     {"in_proj_b", &layer.delta.b}, {"in_proj_a", &layer.delta.a}};
  for (const auto& [known, linear] : linears)
    if (name == known) return *linear;
  throw std::invalid_argument("unknown linear " + name);
}

void set_linear(Weights& weights, const std::string& name, const Matrix& weight, Address bias) {
  Linear& linear = linear_of(last_layer(weights), name);
  linear.weight = weight;
  linear.bias = at<float>(bias);
}

void set_update(Weights& weights, const std::string& name, Address data, bool is_bf16, int64_t rank, int64_t first) {
  Linear& linear = linear_of(last_layer(weights), name);
  linear.up = {at<void>(data), is_bf16, rank};
  linear.first = first;
}

/// The A of all linears with the same input as the named one, row under row.
void set_down(Weights& weights, const std::string& name, const Matrix& down) {
  Layer& layer = last_layer(weights);
  const std::pair<const char*, Matrix*> inputs[] = {
      {"q_proj", &layer.down_attention}, {"o_proj", &layer.down_output}, {"gate_proj", &layer.down_gate}, {"down_proj", &layer.down_down},
      {"in_proj_qkv", &layer.down_attention}, {"out_proj", &layer.down_output}};
  for (const auto& [known, matrix] : inputs)
    if (name == known) {
      *matrix = down;
      return;
    }
  throw std::invalid_argument("unknown input of " + name);
}

void set_ends(Weights& weights, int values, Address embeddings, Address scales, Address zeros, Address norm, Address inverse_frequencies,
              const Matrix& head) {
  weights.embedding_values = static_cast<Values>(values);
  weights.embeddings = at<void>(embeddings);
  weights.embedding_scales = at<void>(scales);
  weights.embedding_zeros = at<uint8_t>(zeros);
  weights.norm = at<float>(norm);
  weights.inverse_frequencies = at<float>(inverse_frequencies);
  weights.head = head;
}

void check(const Matrix& matrix, int64_t rows, int64_t cols, const char* name) {
  if (matrix.rows != rows || matrix.cols != cols || matrix.data == nullptr)
    throw std::invalid_argument(std::string(name) + " must be " + std::to_string(rows) + " x " + std::to_string(cols) + ", got " +
                                std::to_string(matrix.rows) + " x " + std::to_string(matrix.cols));
}

/// Each update's rows must be rows of the common A.
void check_updates(std::initializer_list<const Linear*> linears, const Matrix& down, int64_t cols) {
  if (down.rows > 0) check(down, down.rows, cols, "A");
  for (const Linear* linear : linears)
    if (linear->first < 0 || linear->up.rank < 0 || linear->first + linear->up.rank > down.rows)
      throw std::invalid_argument("an update needs its rows of A");
}

void check_attention(const Layer& layer, const DecoderShape& shape) {
  const int64_t hidden = shape.hidden, query = shape.heads * shape.head, key = shape.kv_heads * shape.head;
  check(layer.q.weight, query, hidden, "q_proj");
  check(layer.k.weight, key, hidden, "k_proj");
  check(layer.v.weight, key, hidden, "v_proj");
  check(layer.o.weight, hidden, query, "o_proj");
  if (layer.query_gate.weight.rows > 0) check(layer.query_gate.weight, query, hidden, "q_gate");
  check_updates({&layer.q, &layer.k, &layer.v, &layer.query_gate}, layer.down_attention, hidden);
  check_updates({&layer.o}, layer.down_output, query);
}

void check_delta(const Layer& layer, const DeltaShape& delta, int64_t hidden) {
  if (delta.key_heads < 1 || delta.value_heads % delta.key_heads != 0 || delta.key_size < 1 || delta.value_size < 1 || delta.window < 2)
    throw std::invalid_argument("heads of a gated delta net");
  const DeltaNet& net = layer.delta;
  if (net.kernel == nullptr || net.decay == nullptr || net.step_bias == nullptr || net.norm == nullptr)
    throw std::invalid_argument("a gated delta net needs all its vectors");
  check(net.qkv.weight, delta.channels(), hidden, "in_proj_qkv");
  check(net.z.weight, delta.values(), hidden, "in_proj_z");
  check(net.b.weight, delta.value_heads, hidden, "in_proj_b");
  check(net.a.weight, delta.value_heads, hidden, "in_proj_a");
  check(layer.o.weight, hidden, delta.values(), "out_proj");
  check_updates({&net.qkv, &net.z, &net.b, &net.a}, layer.down_attention, hidden);
  check_updates({&layer.o}, layer.down_output, delta.values());
}

void check_layer(const Layer& layer, const DecoderShape& shape, const DeltaShape& delta) {
  const int64_t hidden = shape.hidden, inner = shape.intermediate;
  layer.is_delta ? check_delta(layer, delta, hidden) : check_attention(layer, shape);
  check(layer.gate.weight, inner, hidden, "gate_proj");
  check(layer.up.weight, inner, hidden, "up_proj");
  check(layer.down.weight, hidden, inner, "down_proj");
  check_updates({&layer.gate, &layer.up}, layer.down_gate, hidden);
  check_updates({&layer.down}, layer.down_down, inner);
}

void make_decoder(Decoder* place, const DecoderShape& shape, const Weights& weights, Pool& pool) {
  if (static_cast<int64_t>(weights.layers.size()) != shape.layers) throw std::invalid_argument("number of layers");
  if (shape.head < 2 || shape.head > kMaxHead || shape.head % 2 != 0 || shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0)
    throw std::invalid_argument("heads must be even, at most 256 long, and a multiple of the key-value heads in number");
  if (shape.layers < 1 || shape.chunk < 1 || shape.max_length < 1 || shape.max_sequences < 1) throw std::invalid_argument("a limit below 1");
  check(weights.head, shape.vocabulary, shape.hidden, "head");
  if (weights.rotary < 0 || weights.rotary > shape.head || weights.rotary % 2 != 0) throw std::invalid_argument("part of a head that rotates");
  for (const Layer& layer : weights.layers) {
    check_layer(layer, shape, weights.delta);
    if (layer.is_local && weights.local_frequencies == nullptr) throw std::invalid_argument("a local layer needs local frequencies");
  }
  new (place) Decoder(shape, weights, pool);
}

void bind_description(nb::module_& m) {
  nb::class_<DecoderShape>(m, "DecoderShape")
      .def(nb::init<>())
      .def_rw("layers", &DecoderShape::layers)
      .def_rw("hidden", &DecoderShape::hidden)
      .def_rw("intermediate", &DecoderShape::intermediate)
      .def_rw("heads", &DecoderShape::heads)
      .def_rw("kv_heads", &DecoderShape::kv_heads)
      .def_rw("head", &DecoderShape::head)
      .def_rw("vocabulary", &DecoderShape::vocabulary)
      .def_rw("eps", &DecoderShape::eps)
      .def_rw("query_scale", &DecoderShape::query_scale)
      .def_rw("rope_scale", &DecoderShape::rope_scale)
      .def_rw("max_length", &DecoderShape::max_length)
      .def_rw("max_sequences", &DecoderShape::max_sequences)
      .def_rw("chunk", &DecoderShape::chunk)
      .def_rw("bf16_cache", &DecoderShape::bf16_cache);
  nb::class_<Weights>(m, "DecoderWeights")
      .def(nb::init<>())
      .def("add_layer", add_layer)
      .def("vary_layer", vary_layer)
      .def("vary_model", vary_model)
      .def("set_delta", set_delta)
      .def("set_delta_shape", set_delta_shape)
      .def("set_linear", set_linear)
      .def("set_update", set_update)
      .def("set_down", set_down)
      .def("set_ends", set_ends);
}

}  // namespace

void bind_decoder(nb::module_& m) {
  bind_description(m);
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  nb::class_<Decoder>(m, "Decoder")
      .def("__init__", make_decoder, nb::arg("shape"), nb::arg("weights"), nb::arg("pool"), nb::keep_alive<1, 4>())
      .def(
          "prefill",
          [](Decoder& self, int64_t sequence, Address tokens, int64_t count, Address logits) {
            self.prefill(sequence, at<int64_t>(tokens), count, at<float>(logits));
          },
          unlocked)
      .def(
          "step",
          [](Decoder& self, Address sequences, Address counts, int64_t number, Address tokens, Address logits) {
            self.step(at<int64_t>(sequences), at<int64_t>(counts), number, at<int64_t>(tokens), at<float>(logits));
          },
          unlocked)
      .def(
          "score",
          [](Decoder& self, Address tokens, int64_t count, Address logits) {
            self.score(at<int64_t>(tokens), count, at<float>(logits));
          },
          unlocked)
      .def("drop", &Decoder::drop)
      .def("shorten", &Decoder::shorten)
      .def("copy", &Decoder::copy, unlocked)
      .def("length", &Decoder::length)
      .def_prop_ro("cache_bytes", &Decoder::cache_bytes);
}

}  // namespace shears
