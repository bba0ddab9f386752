// shears.runtime.native._native. Addresses and sizes are integers, which Python (runtime/native/kernels.py) checks.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bf16.h"
#include "buffer.h"
#include "decoder_binding.h"
#include "huge.h"
#include "isa.h"
#include "kernels.h"
#include "pack.h"
#include "read.h"
#include "tuning.h"

namespace nb = nanobind;
using namespace shears;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Values checked_values(int values) {
  if (values < 0 || values > 3) throw std::invalid_argument("values must be 0 (f32), 1 (bf16), 2 (i8) or 3 (i4)");
  return static_cast<Values>(values);
}

void make_matrix(Matrix* place, int values, int64_t rows, int64_t cols, Address masks, Address data, Address offsets, Address scales,
                 Address zeros) {
  const Values kind = checked_values(values);
  if (rows < 0 || cols < 0 || rows > (int64_t{1} << 40) || cols > (int64_t{1} << 31)) throw std::invalid_argument("a shape out of range");
  if ((masks == 0) != (offsets == 0)) throw std::invalid_argument("masks and offsets go together");
  if ((values >= 2) != (scales != 0)) throw std::invalid_argument("scales belong to i8 and i4 values, and to these only");
  if ((values == 3) != (zeros != 0)) throw std::invalid_argument("zeros belong to i4 values, and to these only");
  if (values == 2 && cols > kMaxInt8Columns) throw std::invalid_argument("an i8 matrix has at most 131071 columns");
  new (place) Matrix{kind, rows, cols, at<uint8_t>(masks), at<void>(data), at<int64_t>(offsets), nullptr};
  if (kind == Values::i8) place->scales = at<float>(scales);
  if (kind == Values::i4) place->block_scales = at<uint16_t>(scales), place->zeros = at<uint8_t>(zeros);
}

// x or y as fp32: itself, or a copy of a bf16 tensor in `memory`, which `finish` converts back.
class Floats {
 public:
  Floats(Address address, int64_t count, bool bf16, AlignedBuffer& memory) : address_(address), count_(count) {
    if (bf16) copy_ = reinterpret_cast<float*>(memory.reserve(sizeof(float) * static_cast<size_t>(count)));
  }
  float* data() { return copy_ ? copy_ : at<float>(address_); }
  void read() {
    if (copy_) widen(at<uint16_t>(address_), copy_, count_);
  }
  void finish() {
    if (copy_) narrow(copy_, at<uint16_t>(address_), count_);
  }

 private:
  Address address_;
  int64_t count_;
  float* copy_ = nullptr;
};

void multiply_one(const Matrix& matrix, Address x, int64_t m, Address y, Pool& pool, bool bf16, const LowRank* update) {
  static thread_local AlignedBuffer inputs, outputs_memory;
  Floats in(x, m * matrix.cols, bf16, inputs), out(y, m * matrix.rows, bf16, outputs_memory);
  in.read();
  const Matrix* matrices[] = {&matrix};
  float* outputs[] = {out.data()};
  multiply_adapted(matrices, &update, 1, in.data(), m, outputs, pool);
  out.finish();
}

void multiply_several(const std::vector<const Matrix*>& matrices, Address x, int64_t m, const std::vector<Address>& y, Pool& pool,
                      bool bf16, const std::vector<const LowRank*>& updates) {
  const size_t count = matrices.size();
  if (count == 0) return;
  if (y.size() != count || (!updates.empty() && updates.size() != count)) throw std::invalid_argument("one y and one update a matrix");
  for (const Matrix* matrix : matrices)
    if (matrix->cols != matrices[0]->cols) throw std::invalid_argument("matrices that share an input have as many columns");
  AlignedBuffer inputs;
  std::vector<AlignedBuffer> memory(count);
  Floats in(x, m * matrices[0]->cols, bf16, inputs);
  in.read();
  std::vector<Floats> out;
  std::vector<float*> outputs;
  for (size_t k = 0; k < count; ++k) out.emplace_back(y[k], m * matrices[k]->rows, bf16, memory[k]);
  for (Floats& one : out) outputs.push_back(one.data());
  multiply_adapted(matrices.data(), updates.empty() ? nullptr : updates.data(), static_cast<int>(count), in.data(), m, outputs.data(), pool);
  for (Floats& one : out) one.finish();
}

nb::dict describe() {
  const Features now = features();
  nb::dict result;
  result["isa"] = now.isa;
  result["portable"] = true;
  result["avx2"] = now.avx2;
  result["avx512"] = now.avx512;
  result["amx"] = now.amx;
  result["neon"] = now.neon;
  result["neon_dot"] = now.neon_dot;
  return result;
}

void use_isa(const std::string& name) {
  if (!choose_isa(name.c_str()))
    throw std::invalid_argument("SHEARS_ISA must be amx, avx512, avx2, neon_dot, neon or portable, and this machine must have it, got '" + name + "'");
}

void check_update(const Matrix* a, const Matrix* b) {
  if (a->rows != b->cols) throw std::invalid_argument("a has as many rows as b has columns");
}

void describe_matrix(nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix")
      .def("__init__", make_matrix, nb::arg("values"), nb::arg("rows"), nb::arg("cols"), nb::arg("masks"), nb::arg("data"),
           nb::arg("offsets"), nb::arg("scales") = 0, nb::arg("zeros") = 0)
      .def_ro("rows", &Matrix::rows)
      .def_ro("cols", &Matrix::cols)
      .def_prop_ro("values", [](const Matrix& matrix) { return static_cast<int>(matrix.values); });
  nb::class_<LowRank>(m, "LowRank")
      .def(
          "__init__",
          [](LowRank* place, const Matrix* a, const Matrix* b, float scaling) {
            check_update(a, b);
            new (place) LowRank{a, b, scaling};
          },
          nb::arg("a"), nb::arg("b"), nb::arg("scaling"), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>());
}

int checked_class(int number) {
  if (number < 0 || number >= kTokenClasses) throw std::invalid_argument("a token class must be between 0 and 5");
  return number;
}

void bind_tuning(nb::module_& m) {
  m.attr("TOKEN_CLASSES") = kTokenClasses;
  m.def("tokens_of", [](int number) { return tokens_of(checked_class(number)); }, nb::arg("token_class"));
  m.def(
      "candidates", [](int values, bool sparse, int number) { return candidates(checked_values(values), sparse, checked_class(number)); },
      nb::arg("values"), nb::arg("sparse"), nb::arg("token_class"));
  m.def(
      "chosen", [](int values, bool sparse, int number) { return chosen(checked_values(values), sparse, checked_class(number)); },
      nb::arg("values"), nb::arg("sparse"), nb::arg("token_class"));
  m.def(
      "choose",
      [](int values, bool sparse, int number, const std::string& name) {
        return choose(checked_values(values), sparse, checked_class(number), name);
      },
      nb::arg("values"), nb::arg("sparse"), nb::arg("token_class"), nb::arg("name"));
  m.def("forget_choices", forget_choices);
  m.def(
      "measure_speed",
      [](int values, bool sparse, int64_t tokens, size_t bytes, int turns, Pool& pool) {
        if (tokens < 1 || turns < 1 || bytes < (16u << 20)) throw std::invalid_argument("tokens and turns must be positive, bytes at least 16 MB");
        const Speed speed = measure_speed(checked_values(values), sparse, tokens, bytes, turns, pool);
        return std::vector<double>{speed.seconds_per_weight, speed.bytes_per_weight, speed.memory_bytes_per_second};
      },
      nb::arg("values"), nb::arg("sparse"), nb::arg("tokens"), nb::arg("bytes"), nb::arg("turns"), nb::arg("pool"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "time_candidates",
      [](int values, bool sparse, size_t bytes, double seconds) { return time_candidates(checked_values(values), sparse, bytes, seconds); },
      nb::arg("values"), nb::arg("sparse"), nb::arg("bytes"), nb::arg("seconds"), nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // a model in a global variable outlives the interpreter, which is no leak
  describe_matrix(m);
  nb::class_<Pool>(m, "Pool").def(nb::init<int>(), nb::arg("threads")).def_prop_ro("size", &Pool::size);
  nb::class_<HugeBuffer>(m, "HugeBuffer")
      .def(nb::init<>())
      .def(
          "copy", [](HugeBuffer& buffer, Address from, size_t bytes) { return reinterpret_cast<Address>(buffer.copy(at<void>(from), bytes)); },
          nb::arg("address"), nb::arg("bytes"), nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("bytes", &HugeBuffer::bytes);
  m.def("multiply", multiply_one, nb::arg("matrix"), nb::arg("x"), nb::arg("m"), nb::arg("y"), nb::arg("pool"), nb::arg("bf16") = false,
        nb::arg("update") = nb::none(), nb::call_guard<nb::gil_scoped_release>());
  m.def("multiply_many", multiply_several, nb::arg("matrices"), nb::arg("x"), nb::arg("m"), nb::arg("y"), nb::arg("pool"),
        nb::arg("bf16") = false, nb::arg("updates") = std::vector<const LowRank*>{}, nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "pack_dense",
      [](int values, Address from, int64_t rows, int64_t cols, Address to) { pack_dense(static_cast<Values>(values), at<void>(from), rows, cols, at<void>(to)); },
      nb::arg("values"), nb::arg("weight"), nb::arg("rows"), nb::arg("cols"), nb::arg("data"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "read_memory", [](Address from, int64_t bytes, Pool& pool) { return read_memory(at<void>(from), bytes, pool); }, nb::arg("address"),
      nb::arg("bytes"), nb::arg("pool"), nb::call_guard<nb::gil_scoped_release>());
  bind_decoder(m);
  bind_tuning(m);
  m.def("features", describe);
  m.def("select_isa", use_isa, nb::arg("name"));
  if (const char* name = std::getenv("SHEARS_ISA")) use_isa(name);
}
