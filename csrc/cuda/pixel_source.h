// Images as sources of product.h and element_product.h: the operands of a convolution as an implicit product.
//
// Images are dense, channels innermost: [batch][height][width][channels]. A pixel is one number, that of its place in
// this order without the channels.
#pragma once

#include "matrix_source.h"

namespace maskfuse::cuda {

// What a convolution's two images and its taps have to do with each other.
struct PixelGeometry {
  int in_h, in_w, out_h, out_w;
  int kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

struct Pixel {
  int64_t image;
  int y, x;
};
// Pixels of a batch are fewer than 2^31.
__device__ __forceinline__ Pixel pixel_of(int64_t index, int height, int width) {
  const uint32_t row = (uint32_t)index / (uint32_t)width, image = row / (uint32_t)height;
  return {image, (int)(row - image * (uint32_t)height), (int)((uint32_t)index - row * (uint32_t)width)};
}

// Rows of C are the pixels of one image, the depth is (tap, channel of the other image): what a pixel of C meets there.
//
// kBackward: C is the input's gradient and the image that is read the output's; a tap's pixel is there only where the
// stride divides.
template <class T, bool kBackward>
struct PixelSource {
  static constexpr bool kAlongDepth = true, kMasked = false;
  struct Raw {};
  struct Block {
    int y, x;  // the tap's place in the kernel, dilated
    int64_t first;
  };
  struct Outer {
    const T* image;
    int y, x;  // of tap 0; far outside where there is no such row
  };

  const T* data;
  PixelGeometry geometry;
  int64_t rows, channels, pixel_step;  // pixels of C; channels of a group; of all groups
  int tap_blocks;
  bool vectors;

  __device__ __forceinline__ PixelSource in_group(int group) const {
    PixelSource result = *this;
    result.data += group * channels;
    return result;
  }
  __device__ __forceinline__ Block at(int64_t block) const {
    const DepthBlock at = depth_block(block, tap_blocks);
    const int ky = at.tap / geometry.kernel_w, kx = at.tap - ky * geometry.kernel_w;
    return {ky * geometry.dilation_h, kx * geometry.dilation_w, at.first};
  }
  __device__ __forceinline__ Outer outer(int64_t index) const {
    const PixelGeometry& g = geometry;
    constexpr int kOutside = INT32_MIN / 2;
    if (index >= rows) return {data, kOutside, kOutside};
    const Pixel p = pixel_of(index, kBackward ? g.in_h : g.out_h, kBackward ? g.in_w : g.out_w);
    const T* const image = data + p.image * (kBackward ? g.out_h * g.out_w : g.in_h * g.in_w) * pixel_step;
    if constexpr (kBackward)
      return {image, p.y + g.pad_h, p.x + g.pad_w};
    else
      return {image, p.y * g.stride_h - g.pad_h, p.x * g.stride_w - g.pad_w};
  }

  // The place on an axis that a tap meets, or a negative number.
  __device__ __forceinline__ static int place(int outer, int tap, int stride, int size) {
    int at = kBackward ? outer - tap : outer + tap;
    if constexpr (kBackward) {
      if (stride > 1 && at >= 0) at = at % stride == 0 ? at / stride : -1;
    }
    return at < size ? at : -1;
  }
  __device__ __forceinline__ Span<T> span(const Block& block, const Outer& outer, int in_block) const {
    const PixelGeometry& g = geometry;
    const int y = place(outer.y, block.y, g.stride_h, kBackward ? g.out_h : g.in_h);
    const int x = place(outer.x, block.x, g.stride_w, kBackward ? g.out_w : g.in_w);
    const int64_t channel = block.first + in_block;
    const int count = y >= 0 && x >= 0 ? piece_count(channels - channel) : 0;
    if (count == 0) return {data, 0};
    return {outer.image + (int64_t)(y * (kBackward ? g.out_w : g.in_w) + x) * pixel_step + channel, count};
  }
  __device__ __forceinline__ T element(const Block& block, int64_t outer, int in_block) const {
    const Span<T> found = span(block, this->outer(outer), in_block);
    return found.count > 0 ? *found.data : T{};
  }
};

// Columns of C are (tap, channel of the input), the depth is the output's pixels: what a tap of each of them meets. A
// tap's channels are padded to whole pieces.
template <class T>
struct PixelColumns {
  static constexpr bool kAlongDepth = false, kMasked = false;
  using Block = DepthBlock;
  struct Raw {};
  struct Outer {
    int y, x;  // of the tap, less the padding
    int64_t channel;
    int count;
  };

  const T* data;
  PixelGeometry geometry;
  int64_t pixels, channels, padded, pixel_step, columns;
  bool vectors;

  __device__ __forceinline__ PixelColumns in_group(int group) const {
    PixelColumns result = *this;
    result.data += group * channels;
    return result;
  }
  __device__ __forceinline__ Block at(int64_t block) const { return {0, block * kDepth}; }
  __device__ __forceinline__ Outer outer(int64_t index) const {
    if (index >= columns) return {0, 0, 0, 0};
    const int tap = (int)(index / padded), ky = tap / geometry.kernel_w, kx = tap - ky * geometry.kernel_w;
    const int64_t channel = index - tap * padded;
    return {ky * geometry.dilation_h - geometry.pad_h, kx * geometry.dilation_w - geometry.pad_w, channel,
            piece_count(channels - channel)};
  }
  __device__ __forceinline__ Span<T> span(Block block, const Outer& outer, int in_block) const {
    const PixelGeometry& g = geometry;
    const int64_t index = block.first + in_block;
    if (index >= pixels || outer.count == 0) return {data, 0};
    const Pixel p = pixel_of(index, g.out_h, g.out_w);
    const int y = p.y * g.stride_h + outer.y, x = p.x * g.stride_w + outer.x;
    if (y < 0 || y >= g.in_h || x < 0 || x >= g.in_w) return {data, 0};
    return {data + ((p.image * g.in_h + y) * g.in_w + x) * pixel_step + outer.channel, outer.count};
  }
  __device__ __forceinline__ T element(Block block, int64_t outer, int in_block) const {
    const Span<T> found = span(block, this->outer(outer), in_block);
    return found.count > 0 ? *found.data : T{};
  }
};

}  // namespace maskfuse::cuda
