// Scratch memory of the products.
#pragma once
#include <cstddef>
#include <new>

namespace shears {

// 64-byte aligned memory that grows and is reused. It loses its content when it grows.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  ~AlignedBuffer() { ::operator delete(data_, std::align_val_t{64}); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  char* reserve(size_t bytes) {
    if (bytes > size_) {
      ::operator delete(data_, std::align_val_t{64});
      data_ = nullptr, size_ = 0;
      data_ = static_cast<char*>(::operator new(bytes, std::align_val_t{64}));
      size_ = bytes;
    }
    return data_;
  }
  char* data() { return data_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace shears
