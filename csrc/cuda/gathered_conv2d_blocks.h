// Which blocks of the depth a product of chosen channels visits.
#pragma once

#include "channel_bits.h"
#include "product.h"

namespace maskfuse::cuda {

// Of 128 pixels of forward's output: blocks (tap, 64 channels) in which any of their images has a channel.
struct ForwardBlocks {
  static constexpr int kThreads = 64;  // lists are many and short

  ChannelBits bits;
  int64_t words;          // of a row of bits
  int64_t pixels, plane;  // of all images; of one
  int tap_blocks;

  __host__ __device__ __forceinline__ bool active(int64_t group, int64_t block) const {
    constexpr int kBlockWords = kDepth / 32;
    const ImageRange images = bits.images(group * kListed, kListed, pixels, plane);
    const int64_t word = (uint32_t)block % (uint32_t)tap_blocks * kBlockWords;
    const int64_t end = word + kBlockWords < words ? word + kBlockWords : words;
    for (int64_t image = images.first; image <= images.last; ++image)
      for (int64_t w = word; w < end; ++w)
        if (bits.data[image * bits.ld + w] != 0) return true;
    return false;
  }
};

// Of 128 columns (tap, channel in whole pieces) of the weight's gradient: blocks of 64 pixels whose images have any of
// the channels.
struct WeightGradBlocks {
  static constexpr int kThreads = 512;  // lists are few and long

  ChannelBits bits;
  int64_t columns, padded;  // of all taps; of one
  int64_t pixels, plane;    // of the output's images, of one

  __host__ __device__ __forceinline__ bool active(int64_t group, int64_t block) const {
    const ImageRange images = bits.images(block * kDepth, kDepth, pixels, plane);
    const int64_t first = group * kListed, end = first + kListed < columns ? first + kListed : columns;
    for (int64_t image = images.first; image <= images.last; ++image) {
      int64_t channel = first % padded;
      for (int64_t column = first; column < end; column += kPieceElements) {
        if (bits.eight(image, channel) != 0) return true;
        channel += kPieceElements;
        if (channel == padded) channel = 0;
      }
    }
    return false;
  }
};

}  // namespace maskfuse::cuda
