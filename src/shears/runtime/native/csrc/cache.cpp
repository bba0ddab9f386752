#include "cache.h"

#include <cstring>
#include <new>

namespace shears {

namespace {
constexpr std::align_val_t kAlignment{64};

int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
}  // namespace

void Cache::Free::operator()(uint8_t* memory) const { ::operator delete(memory, kAlignment); }

Cache::Cache(const CacheShape& shape, int64_t max_sequences)
    : shape_(shape), padded_(rounded_up(shape.head, kPanel)), sequences_(max_sequences) {
  head_bytes_ = rounded_up(kBlock * (shape.head + padded_) * (shape.is_bf16 ? 2 : 4), 64);
  block_bytes_ = head_bytes_ * shape.heads * shape.layers;
}

void Cache::reserve(int64_t sequence, int64_t count) {
  Sequence& mine = sequences_[sequence];
  const size_t needed = static_cast<size_t>((mine.length + count + kBlock - 1) / kBlock);
  mine.blocks.reserve(needed);
  while (mine.blocks.size() < needed) {
    if (spare_.empty()) {
      spare_.reserve(memory_.size() + 1);  // so that drop cannot fail
      std::unique_ptr<uint8_t, Free> block(static_cast<uint8_t*>(::operator new(block_bytes_, kAlignment)));
      std::memset(block.get(), 0, block_bytes_);  // attention reads the padding of values, which must be finite
      memory_.push_back(std::move(block));
      spare_.push_back(memory_.back().get());
    }
    mine.blocks.push_back(spare_.back());
    spare_.pop_back();
  }
}

void Cache::drop(int64_t sequence) {
  Sequence& mine = sequences_[sequence];
  spare_.insert(spare_.end(), mine.blocks.begin(), mine.blocks.end());
  mine = {};
}

void Cache::shorten(int64_t sequence, int64_t length) {
  Sequence& mine = sequences_[sequence];
  const auto used = mine.blocks.begin() + (length + kBlock - 1) / kBlock;
  spare_.insert(spare_.end(), used, mine.blocks.end());
  mine.blocks.erase(used, mine.blocks.end());
  mine.length = length;
}

void Cache::copy(int64_t source, int64_t target, int64_t count) {
  reserve(target, count);
  for (int64_t block = 0; block * kBlock < count; ++block)
    std::memcpy(sequences_[target].blocks[block], sequences_[source].blocks[block], block_bytes_);
  sequences_[target].length = count;
}

Cached Cache::at(int64_t sequence, int64_t layer, int64_t head) const {
  const int64_t offset = (layer * shape_.heads + head) * head_bytes_;
  return {sequences_[sequence].blocks.data(), offset, shape_.head, padded_, shape_.is_bf16};
}

}  // namespace shears
