// Memory that kernels work in, kept from call to call.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace maskfuse {

// A grow-only buffer: pages that are there need not be mapped and zeroed by the system in every call.
class Buffer {
 public:
  void* get(size_t bytes) {
    if (bytes > size_) {
      // A power of two, so that it rarely grows; pages that are not touched take no memory.
      size_t rounded = 4096;
      while (rounded < bytes) rounded *= 2;
      data_.reset();
      size_ = 0;
      data_.reset(std::aligned_alloc(4096, rounded));
      if (!data_) throw std::bad_alloc();
      size_ = rounded;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  size_t size_ = 0;
};

// A thread keeps what it worked in; more than this much, as for large batches, is given back.
inline constexpr size_t kKeptBytes = size_t{32} << 20;

inline Buffer& thread_scratch() {
  static thread_local Buffer buffer;
  return buffer;
}
inline Buffer& thread_shared() {
  static thread_local Buffer buffer;
  return buffer;
}

}  // namespace maskfuse
