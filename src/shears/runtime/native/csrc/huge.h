// Memory for weights: 2 MB pages where the system has them (a core reads a quarter faster from them), padded for the kernels.
#pragma once
#include <cstddef>
#include <mutex>
#include <vector>

namespace shears {

// Copies of tensors, packed one behind the other into large blocks, each 64-byte aligned and followed by kOverread readable bytes.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  ~HugeBuffer();
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;

  // Room for `bytes`; `from` is copied there unless it is null (then zeros). It stays until the buffer goes.
  void* copy(const void* from, size_t bytes);
  size_t bytes() const { return used_; }

 private:
  struct Block {
    char* data;
    size_t size, used;
  };
  std::mutex lock_;
  std::vector<Block> blocks_;
  size_t used_ = 0;
};

}  // namespace shears
