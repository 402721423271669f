// How a call's memory is laid out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskfuse {

// Parts of a memory, one after another, each at the beginning of a cache line.
struct Layout {
  size_t bytes = 0;
  size_t add(int64_t size) {
    const size_t at = bytes;
    bytes += ((size_t)size + 63) / 64 * 64;
    return at;
  }
};

}  // namespace maskfuse
