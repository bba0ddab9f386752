// Attention over a cache in blocks with an online softmax (Milakov and Gimelshein, arXiv 1805.02867). Included like
// simd.inl.

constexpr int kVecs = kBlock / kLanes;                    // vectors of positions in a block
#if defined(SHEARS_OPS_NEON)
constexpr int kTogether = 4;                              // vectors (of positions, or of a head) computed together
#else
constexpr int kTogether = kLanes == 4 ? 2 : 4;
#endif
constexpr float kMinusInfinity = -__builtin_inff();

template <class T>
inline void remember_as(const Cached& cache, int64_t position, const float* key, const float* value) {
  T* keys = reinterpret_cast<T*>(cache.blocks[position / kBlock] + cache.offset);
  T* values = keys + kBlock * cache.head + (position % kBlock) * cache.padded;
  T* lane = keys + position % kBlock / kGroup * cache.head * kGroup + position % kGroup;
  for (int64_t i = 0; i < cache.head; ++i) assign(lane[i * kGroup], key[i]);
  for (int64_t i = 0; i < cache.head; ++i) assign(values[i], value[i]);
}

void remember(const Cached& cache, int64_t position, const float* key, const float* value) {
  if (cache.is_bf16)
    remember_as<uint16_t>(cache, position, key, value);
  else
    remember_as<float>(cache, position, key, value);
}

/// scores[r][position of the block] = query r . key
template <class T, int kRows>
inline void score_block(const T* keys, const float* const* query, int64_t head, float (*scores)[kBlock]) {
  for (int v = 0; v < kVecs; v += kTogether) {
    const T* lanes[kTogether];
    for (int u = 0; u < kTogether; ++u) {
      const int64_t position = (v + u) * kLanes;
      lanes[u] = keys + position / kGroup * head * kGroup + position % kGroup;
    }
    Vec total[kRows][kTogether] = {};
    for (int64_t i = 0; i < head; ++i)
      for (int u = 0; u < kTogether; ++u) {
        const Vec key = load(lanes[u] + i * kGroup);
        for (int r = 0; r < kRows; ++r) total[r][u] += query[r][i] * key;
      }
    for (int r = 0; r < kRows; ++r)
      for (int u = 0; u < kTogether; ++u) store(scores[r] + (v + u) * kLanes, total[r][u]);
  }
}

/// sums[r] += weights[r] @ values, over positions [begin, end) of the block
template <class T, int kRows>
inline void weigh_block(const T* values, const float (*weights)[kBlock], int64_t begin, int64_t end, int64_t padded,
                        float (*sums)[kMaxHead]) {
  for (int64_t i = 0; i < padded; i += kLanes * kTogether) {
    const int parts = static_cast<int>(smaller_of<int64_t>(kTogether, (padded - i) / kLanes));
    Vec total[kRows][kTogether];
    for (int r = 0; r < kRows; ++r)
      for (int u = 0; u < kTogether; ++u) total[r][u] = u < parts ? load(sums[r] + i + u * kLanes) : Vec{};
    const T* row = values + i;
    if (parts == kTogether) {
      for (int64_t t = begin; t < end; ++t)
        for (int u = 0; u < kTogether; ++u) {
          const Vec value = load(row + t * padded + u * kLanes);
          for (int r = 0; r < kRows; ++r) total[r][u] += weights[r][t] * value;
        }
    } else {
      for (int64_t t = begin; t < end; ++t)
        for (int u = 0; u < parts; ++u) {
          const Vec value = load(row + t * padded + u * kLanes);
          for (int r = 0; r < kRows; ++r) total[r][u] += weights[r][t] * value;
        }
    }
    for (int r = 0; r < kRows; ++r)
      for (int u = 0; u < parts; ++u) store(sums[r] + i + u * kLanes, total[r][u]);
  }
}

/// One query's softmax so far: the highest score, and the sum of exp(score - top).
struct Running {
  float top = kMinusInfinity, total = 0;
};

/// Replace scores by weights: 0 outside [begin, end), else exp(score - top); scale sums to the new top.
inline void soften(float* scores, int64_t begin, int64_t end, int64_t padded, Running& running, float* sums) {
  if (begin >= end) {
    fill(scores, scores + kBlock, 0.0f);
    return;
  }
  fill(scores, scores + begin, kMinusInfinity);
  fill(scores + end, scores + kBlock, kMinusInfinity);
  Vec highest = load(scores);
  for (int v = 1; v < kVecs; ++v) highest = larger(load(scores + v * kLanes), highest);
  const float top = larger_of(running.top, largest(highest));
  const float factor = exponential(all(running.top - top))[0];
  Vec total = {};
  for (int v = 0; v < kVecs; ++v) {
    const Vec weight = exponential(load(scores + v * kLanes) - top);
    store(scores + v * kLanes, weight);
    total += weight;
  }
  running.total = running.total * factor + sum(total);
  running.top = top;
  if (factor != 1.0f) scale(factor, padded, sums);
}

template <class T, int kRows>
void attend_rows(const Cached& cache, const Queries& queries) {
  alignas(64) float sums[kRows][kMaxHead], scores[kRows][kBlock];
  Running running[kRows];
  for (int r = 0; r < kRows; ++r) fill(sums[r], sums[r] + cache.padded, 0.0f);
  int64_t first = queries.first[0], last = queries.last[0];
  for (int r = 1; r < kRows; ++r) {
    first = smaller_of(first, queries.first[r]);
    last = larger_of(last, queries.last[r]);
  }
  for (int64_t block = first / kBlock; block * kBlock < last; ++block) {
    const int64_t start = block * kBlock;
    const T* keys = reinterpret_cast<const T*>(cache.blocks[block] + cache.offset);
    score_block<T, kRows>(keys, queries.query, cache.head, scores);
    for (int r = 0; r < kRows; ++r) {
      const int64_t begin = larger_of<int64_t>(queries.first[r] - start, 0);
      soften(scores[r], begin, smaller_of(queries.last[r] - start, kBlock), cache.padded, running[r], sums[r]);
    }
    const int64_t begin = larger_of<int64_t>(first - start, 0), end = smaller_of(last - start, kBlock);
    weigh_block<T, kRows>(keys + kBlock * cache.head, scores, begin, end, cache.padded, sums);
  }
  for (int r = 0; r < kRows; ++r)
    for (int64_t i = 0; i < cache.head; ++i) queries.output[r][i] = sums[r][i] / running[r].total;
}

template <class T>
inline void attend_as(const Cached& cache, const Queries& queries) {
  switch (queries.count) {
    case 1: return attend_rows<T, 1>(cache, queries);
    case 2: return attend_rows<T, 2>(cache, queries);
    case 3: return attend_rows<T, 3>(cache, queries);
    default: return attend_rows<T, 4>(cache, queries);
  }
}

void attend(const Cached& cache, const Queries& queries) {
  if (cache.is_bf16)
    attend_as<uint16_t>(cache, queries);
  else
    attend_as<float>(cache, queries);
}
