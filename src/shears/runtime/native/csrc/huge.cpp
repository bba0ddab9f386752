#include "huge.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "matrix.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, size) (static_cast<void>(data), static_cast<void>(size))
#define ASAN_UNPOISON_MEMORY_REGION(data, size) (static_cast<void>(data), static_cast<void>(size))
#endif

namespace shears {
namespace {

constexpr size_t kPage = size_t{2} << 20, kBlock = size_t{32} << 20;

char* allocate(size_t size) {
#if defined(__linux__)
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(data, size, MADV_HUGEPAGE);  // the system may refuse; small pages are only slower
#endif
  return static_cast<char*>(data);
#else
  void* data = ::operator new(size, std::align_val_t{4096});
  std::memset(data, 0, size);
  return static_cast<char*>(data);
#endif
}

void release(char* data, size_t size) {
#if defined(__linux__)
  munmap(data, size);
#else
  ::operator delete(data, std::align_val_t{4096});
  (void)size;
#endif
}

}  // namespace

HugeBuffer::~HugeBuffer() {
  for (const Block& block : blocks_) {
    ASAN_UNPOISON_MEMORY_REGION(block.data, block.size);
    release(block.data, block.size);
  }
}

void* HugeBuffer::copy(const void* from, size_t bytes) {
  std::lock_guard<std::mutex> lock(lock_);
  const size_t room = (bytes + kOverread + 63) / 64 * 64;
  if (room < bytes) throw std::bad_alloc();
  if (blocks_.empty() || blocks_.back().size - blocks_.back().used < room) {
    const size_t size = std::max(kBlock, (room + kPage - 1) / kPage * kPage);
    blocks_.reserve(blocks_.size() + 1);
    blocks_.push_back({allocate(size), size, 0});
    ASAN_POISON_MEMORY_REGION(blocks_.back().data, size);  // memory that belongs to no copy
  }
  Block& block = blocks_.back();
  char* place = block.data + block.used;
  ASAN_UNPOISON_MEMORY_REGION(place, bytes + kOverread);
  if (from) std::memcpy(place, from, bytes);
  block.used += room, used_ += room;
  return place;
}

}  // namespace shears
