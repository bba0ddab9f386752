// Keys and values of many sequences, in blocks of 64 positions; one block holds those positions of all layers.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops.h"

namespace shears {

struct CacheShape {
  int64_t layers, heads, head;  // key-value heads, length of a head
  bool is_bf16;
};

/// Allocates blocks; a dropped sequence's blocks are kept for other sequences.
class Cache {
 public:
  Cache(const CacheShape& shape, int64_t max_sequences);
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  int64_t length(int64_t sequence) const { return sequences_[sequence].length; }
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()) * block_bytes_; }

  /// Make room for `count` more positions. If it throws std::bad_alloc, the sequence has at most more room.
  void reserve(int64_t sequence, int64_t count);
  /// Count the next `count` positions as filled; every layer has them.
  void advance(int64_t sequence, int64_t count) { sequences_[sequence].length += count; }
  void drop(int64_t sequence);
  /// Forget the positions from `length` on; the blocks that held only those are free again.
  void shorten(int64_t sequence, int64_t length);
  /// Let an empty sequence begin with a copy of the first `count` positions of another. Throws as `reserve` does.
  void copy(int64_t source, int64_t target, int64_t count);
  Cached at(int64_t sequence, int64_t layer, int64_t head) const;

 private:
  struct Free {
    void operator()(uint8_t* memory) const;
  };
  struct Sequence {
    int64_t length = 0;
    std::vector<uint8_t*> blocks;
  };

  CacheShape shape_;
  int64_t padded_, head_bytes_, block_bytes_;
  std::vector<std::unique_ptr<uint8_t, Free>> memory_;
  std::vector<uint8_t*> spare_;
  std::vector<Sequence> sequences_;
};

}  // namespace shears
