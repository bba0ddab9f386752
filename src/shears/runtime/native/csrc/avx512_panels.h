// Panels of a weight on AVX-512 and AMX: where one begins in memory, and how its sums become outputs.
#pragma once
#include "avx512_inputs.h"

namespace shears {
namespace {

static inline bool is_expanded(const Matrix& matrix) { return matrix.masks || matrix.values == Values::i4; }  // once, for several tiles

static inline size_t panel_bytes(const Matrix& matrix) { return 64 * static_cast<size_t>(groups(matrix.values, matrix.cols)); }

// The position in a panel's masks and in its values.
template <class T>
struct Stream {
  const uint8_t* masks;
  const typename T::Element* v;
  char* expanded;                 // where expanded groups are kept for later tiles, if they are
  const uint16_t* scales;         // of the panel's next block; only for i4
  const uint8_t* zeros;
};

template <class T>
Stream<T> stream_at(const Matrix& matrix, int64_t p) {
  const auto* data = static_cast<const typename T::Element*>(matrix.data);
  const int64_t count = groups(matrix.values, matrix.cols);
  Stream<T> from{};
  if constexpr (T::kInBlocks) {
    from.scales = matrix.block_scales + p * blocks(matrix.cols) * kPanelRows;
    from.zeros = matrix.zeros + p * blocks(matrix.cols) * (kPanelRows / 2);
  }
  from.masks = matrix.masks ? matrix.masks + p * count * 2 * T::kGroup : nullptr;
  from.v = data + (matrix.masks ? matrix.offsets[p] : p * count * static_cast<int64_t>(group_bytes(matrix.values) / sizeof(typename T::Element)));
  return from;
}

static inline void store_panel(const Job& job, int64_t p, int64_t t, __m512 sum) {
  const Matrix& matrix = *job.matrix;
  const int64_t row = p * kPanelRows;
  const __mmask16 rows = lanes(matrix.rows - row);
  if (matrix.scales) sum = _mm512_mul_ps(sum, _mm512_maskz_loadu_ps(rows, matrix.scales + row));
  float* y = job.y + t * matrix.rows + row;
  sum = _mm512_mul_ps(sum, _mm512_set1_ps(job.factor));
  if (job.add) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(rows, y));
  _mm512_mask_storeu_ps(y, rows, sum);
}

}  // namespace
}  // namespace shears
