// Images of which each has channels of its own, as sources of product.h and element_product.h: pixel_source.h's, with
// zeros in channels that the image does not choose. A convolution of these is in one group.
#pragma once

#include "channel_bits.h"
#include "pixel_source.h"

namespace maskfuse::cuda {

// Eight elements as they are read, and which of them are chosen.
struct PixelPiece {
  Piece pixels;
  uint32_t bits;

  __device__ __forceinline__ Piece chosen() const {
    Piece result;
#pragma unroll
    for (int i = 0; i < 4; ++i) result.word[i] = pixels.word[i] & pair_mask(bits >> 2 * i);
    return result;
  }
};

// PixelSource of the forward pass.
template <class T>
struct GatheredPixels {
  static constexpr bool kAlongDepth = true, kMasked = true;
  using Pixels = PixelSource<T, false>;
  using Block = typename Pixels::Block;
  using Raw = PixelPiece;
  struct Outer {
    typename Pixels::Outer pixel;
    int image;
  };

  Pixels pixels;
  ChannelBits bits;

  __device__ __forceinline__ GatheredPixels in_group(int) const { return *this; }
  __device__ __forceinline__ Block at(int64_t block) const { return pixels.at(block); }
  __device__ __forceinline__ Outer outer(int64_t index) const {
    const PixelGeometry& g = pixels.geometry;
    const int64_t image = index < pixels.rows ? pixel_of(index, g.out_h, g.out_w).image : 0;
    return {pixels.outer(index), (int)image};
  }
  __device__ __forceinline__ Raw load(const Block& block, const Outer& outer, int in_block) const {
    const Span<T> span = pixels.span(block, outer.pixel, in_block);
    return {read_piece(span, pixels.vectors), span.count == 0 ? 0 : bits.eight(outer.image, block.first + in_block)};
  }
  __device__ __forceinline__ Piece finish(const Raw& raw) const { return raw.chosen(); }
  __device__ __forceinline__ T element(const Block& block, int64_t outer, int in_block) const {
    const Outer at = this->outer(outer);
    const Span<T> found = pixels.span(block, at.pixel, in_block);
    return found.count > 0 && bits.one(at.image, block.first + in_block) ? *found.data : T{};
  }
};

// PixelColumns: a block of the depth may hold pixels of several images.
template <class T>
struct GatheredPixelColumns {
  static constexpr bool kAlongDepth = false, kMasked = true;
  using Pixels = PixelColumns<T>;
  using Block = typename Pixels::Block;
  using Outer = typename Pixels::Outer;
  using Raw = PixelPiece;

  Pixels pixels;
  ChannelBits bits;

  __device__ __forceinline__ GatheredPixelColumns in_group(int) const { return *this; }
  __device__ __forceinline__ Block at(int64_t block) const { return pixels.at(block); }
  __device__ __forceinline__ Outer outer(int64_t index) const { return pixels.outer(index); }

  // Of a pixel that is there.
  __device__ __forceinline__ int64_t image(const Block& block, int in_block) const {
    return pixel_of(block.first + in_block, pixels.geometry.out_h, pixels.geometry.out_w).image;
  }
  __device__ __forceinline__ Raw load(const Block& block, const Outer& outer, int in_block) const {
    const Span<T> span = pixels.span(block, outer, in_block);
    return {read_piece(span, pixels.vectors), span.count == 0 ? 0 : bits.eight(image(block, in_block), outer.channel)};
  }
  __device__ __forceinline__ Piece finish(const Raw& raw) const { return raw.chosen(); }
  __device__ __forceinline__ T element(const Block& block, int64_t outer, int in_block) const {
    const Outer at = pixels.outer(outer);
    const Span<T> found = pixels.span(block, at, in_block);
    return found.count > 0 && bits.one(image(block, in_block), at.channel) ? *found.data : T{};
  }
};

}  // namespace maskfuse::cuda
