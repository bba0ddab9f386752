// The operations of a decoder layer other than matrix products; compiled once per instruction set.
#pragma once

#include <cstdint>

namespace shears {

constexpr int64_t kPanel = 16;      // rows side by side in `Up`
constexpr int64_t kBlock = 64;      // positions of a block of the key-value cache
constexpr int64_t kGroup = 16;      // positions with their keys side by side
constexpr int64_t kMaxHead = 256;   // the longest head
constexpr int kMaxRows = 4;         // queries that share one pass over keys and values
constexpr int kRaisedRows = 4;      // rows (tokens) that share one pass over B

/// scaling * B of a low-rank update: [panel][rank][16 rows], rows beyond the last are 0.
struct Up {
  const void* data = nullptr;
  bool is_bf16 = false;
  int64_t rank = 0;
};

/// Rows (tokens) of `raise`: the inputs h of B, and y, to which B h is added; consecutive rows are `_step` numbers
/// apart.
struct Raised {
  const float* h;
  int64_t h_step;
  float* y;
  int64_t y_step;
  int64_t rows;
};

/// The place of the keys and values of one layer and key-value head: in each block, `offset` bytes from its start,
/// keys [4 groups][head][16 positions], then values [64 positions][padded head].
struct Cached {
  uint8_t* const* blocks;
  int64_t offset;
  int64_t head;    // length of a head
  int64_t padded;  // head rounded up to 16
  bool is_bf16;
};

/// Up to kMaxRows queries against cached positions [first[r], last[r]).
struct Queries {
  int count;
  const float* query[kMaxRows];  // scaled
  float* output[kMaxRows];
  int64_t first[kMaxRows], last[kMaxRows];
};

/// A step of the gated delta rule for one head (Yang et al., arXiv 2412.06464): S decays, then
/// S += key (value - S' key)' beta, and output = S' query; S is [key_size, value_size].
struct DeltaStep {
  float* state;
  const float *query, *key, *value;
  float decay, beta;
  int64_t key_size, value_size;
  float* output;
};

struct Ops {
  /// y = weight * x / sqrt(mean(x^2) + eps); y may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);
  /// y += x
  void (*add)(const float* x, int64_t n, float* y);
  /// gate = silu(gate) * up
  void (*swiglu)(const float* up, int64_t n, float* gate);
  /// gate = gelu(gate) * up, with the tanh approximation of gelu
  void (*geglu)(const float* up, int64_t n, float* gate);
  /// y *= sigmoid(gate)
  void (*gate)(const float* gate, int64_t n, float* y);
  /// y = silu(sum over j of weights[j] * x[j]) for n channels; weights are [size, n], x are `size` rows
  void (*convolve)(const float* const* x, const float* weights, int64_t size, int64_t n, float* y);
  void (*delta)(const DeltaStep& step);
  /// y[begin, end) += B h for every token; a token's sum does not depend on the other tokens
  void (*raise)(const Up& up, const Raised& tokens, int64_t begin, int64_t end);
  /// Rotate the halves of one head by angles, given by their cosines and sines (head / 2 of each).
  void (*rotate)(const float* cosines, const float* sines, int64_t head, float* x);
  /// x *= factor
  void (*scale)(float factor, int64_t n, float* x);
  /// Write one position's key and value into its block.
  void (*remember)(const Cached& cache, int64_t position, const float* key, const float* value);
  /// output = softmax(query . keys) values
  void (*attend)(const Cached& cache, const Queries& queries);
  /// y = x as fp32
  void (*widen)(const uint16_t* x, int64_t n, float* y);
};

/// The table for the instruction set of isa() in isa.h.
const Ops& ops();

namespace ops_avx512 { extern const Ops kOps; }
namespace ops_avx2 { extern const Ops kOps; }
namespace ops_neon { extern const Ops kOps; }
namespace ops_portable { extern const Ops kOps; }

}  // namespace shears
