// Memory for weights, in 2 MB pages where the system has them (a core reads a quarter faster from them), padded for
// the kernels.
#pragma once
#include <cstddef>
#include <mutex>
#include <vector>

namespace shears {

// Copies of tensors, one after the other in large blocks; each is 64-byte aligned and followed by kOverread readable
// bytes.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  ~HugeBuffer();
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;

  // Return memory for `bytes`, a copy of `from`, or zeros if `from` is null. The buffer frees it when it is destroyed.
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
