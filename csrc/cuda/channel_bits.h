// The channels that each image chooses, as bits.
#pragma once

#include "machine.h"

namespace maskfuse::cuda {

// Images [first, last].
struct ImageRange {
  int64_t first, last;
};

struct ChannelBits {
  const uint32_t* data;
  int64_t ld;  // words from image to image; 0: the same for all

  // Of eight channels from a multiple of eight on. Words are little-endian, as every device's are.
  __host__ __device__ __forceinline__ uint32_t eight(int64_t image, int64_t channel) const {
    return ((const uint8_t*)(data + image * ld))[channel / 8];
  }
  __host__ __device__ __forceinline__ bool one(int64_t image, int64_t channel) const {
    return data[image * ld + channel / 32] >> (channel % 32) & 1;
  }

  // Whose bits `count` pixels from `first` on take, of `pixels` in images of `plane` each. There is such a pixel, and
  // pixels are fewer than 2^31.
  __host__ __device__ __forceinline__ ImageRange images(int64_t first, int64_t count, int64_t pixels,
                                                        int64_t plane) const {
    if (ld == 0) return {0, 0};
    const int64_t last = (first + count < pixels ? first + count : pixels) - 1;
    return {(uint32_t)first / (uint32_t)plane, (uint32_t)last / (uint32_t)plane};
  }
};

}  // namespace maskfuse::cuda
