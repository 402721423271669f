// The operands and results of gathered_conv2d's products, as product.h and element_product.h take them.
#pragma once

#include "gathered_conv2d.h"
#include "gathered_pixel_source.h"
#include "masked_conv2d_operands.h"

namespace maskfuse::cuda {

// The input's gradient, zero in channels that a pixel's image does not choose.
template <class T>
struct GatheredImageResult {
  using Sum = typename MatrixResult<T>::Sum;

  MatrixResult<T> image;
  ChannelBits bits;
  int64_t plane;  // pixels of an image

  __device__ __forceinline__ GatheredImageResult in_group(int) const { return *this; }

  // Whether an image of the rows chooses a channel of the columns; every thread of the block asks.
  __device__ __forceinline__ bool wanted(int64_t row, int64_t column, int height, int width) const {
    const ImageRange images = bits.images(row, height, image.rows, plane);
    const int words = width / 32;
    const int64_t all_words = ceil_div(image.columns, 32);
    bool any = false;
    for (int64_t i = threadIdx.x; i < (images.last - images.first + 1) * words; i += blockDim.x) {
      const int64_t word = column / 32 + i % words;
      if (word < all_words) any = any || bits.data[(images.first + i / words) * bits.ld + word] != 0;
    }
    return sync_block_or(any);
  }

  __device__ __forceinline__ int64_t image_of(int64_t row) const { return (uint32_t)row / (uint32_t)plane; }
  __device__ __forceinline__ void write_one(int64_t row, int64_t column, Sum sum) const {
    image.write_one(row, column, bits.one(image_of(row), column) ? sum : 0);
  }
  __device__ __forceinline__ void write(int64_t row, int64_t column, const float* sums) const {
    const uint32_t chosen = bits.eight(image_of(row), column);
    float masked[kPieceElements];
#pragma unroll
    for (int e = 0; e < kPieceElements; ++e) masked[e] = chosen >> e & 1 ? sums[e] : 0;
    image.write(row, column, masked);
  }
};

// The gradient of the weight, [out][channels][taps], from columns (tap, channel in whole pieces).
template <class T>
struct GatheredWeightGradResult {
  using Sum = typename Accumulator<T>::type;

  T* c;
  int64_t channels, padded;
  int taps;
  ChannelBits bits;

  __device__ __forceinline__ GatheredWeightGradResult in_group(int) const { return *this; }

  // Whether there is a channel among the columns that all images choose, where they choose the same; every thread of
  // the block asks. Where each has its own, the lists say what is summed.
  __device__ __forceinline__ bool wanted(int64_t, int64_t column, int, int width) const {
    if (bits.ld > 0) return true;
    bool any = false;
    for (int i = (int)threadIdx.x; i < width / kPieceElements; i += (int)blockDim.x) {
      const int64_t at = column + i * kPieceElements;
      if (at < taps * padded) any = any || bits.eight(0, at % padded) != 0;
    }
    return sync_block_or(any);
  }

  __device__ __forceinline__ void write_one(int64_t row, int64_t column, Sum sum) const {
    const int tap = (int)(column / padded);
    const int64_t channel = column - tap * padded;
    if (channel < channels) c[(row * channels + channel) * taps + tap] = Rounded<T>::of(sum);
  }
  __device__ __forceinline__ void write(int64_t row, int64_t column, const float* sums) const {
    for (int e = 0; e < kPieceElements; ++e) write_one(row, column + e, (Sum)sums[e]);
  }
};

template <class T, bool kAlongDepth>
MatrixSource<T, kAlongDepth> dense_weight(const MaskedConv& c, const ConvProduct& p) {
  MatrixSource<T, kAlongDepth> weight =
      matrix_source<kAlongDepth>((const T*)c.weight, c.shape.taps() * p.in, p.out, p.in);
  weight.vectors = weight.vectors && p.in * sizeof(T) % kPieceBytes == 0;  // taps begin at whole vectors, too
  return weight;
}

// Calls go(A, B, result) with the sources of a problem's operands.
template <class T, class Go>
cudaError_t with_operands(const GatheredConv& g, const Go& go) {
  const MaskedConv& c = g.conv;
  const ConvShape& s = c.shape;
  const ConvProduct p = conv_product(c);
  const PixelGeometry geometry = geometry_of(s);
  const ChannelBits bits{g.channels, g.ld};
  const auto blocks = [](int64_t channels) { return (int)(channels > 0 ? ceil_div(channels, kDepth) : 1); };
  const auto vectors = [](const void* data, int64_t channels) { return vector_rows(data, channels, sizeof(T)); };
  switch (c.pass) {
    case Pass::forward: {
      const PixelSource<T, false> pixels{(const T*)c.input,     geometry, p.m, s.in, s.in, blocks(s.in),
                                         vectors(c.input, s.in)};
      return go(GatheredPixels<T>{pixels, bits}, dense_weight<T, true>(c, p), image_result<T>(c, p, s.out));
    }
    case Pass::input_grad: {
      const PixelSource<T, true> pixels{(const T*)c.output,      geometry, p.m, s.out, s.out, blocks(s.out),
                                        vectors(c.output, s.out)};
      return go(pixels, dense_weight<T, false>(c, p),
                GatheredImageResult<T>{image_result<T>(c, p, s.in), bits, s.in_h * s.in_w});
    }
    default: {
      const MatrixSource<T, false> gradient = matrix_source<false>((const T*)c.output, s.out, s.pixels(), s.out);
      const PixelColumns<T> pixels{(const T*)c.input, geometry, s.pixels(), s.in,
                                   p.padded,          s.in,     p.n,        vectors(c.input, s.in)};
      return go(gradient, GatheredPixelColumns<T>{pixels, bits},
                GatheredWeightGradResult<T>{(T*)c.result, s.in, p.padded, (int)s.taps(), bits});
    }
  }
}

// The blocks of the depth that are visited: those of the pixels that are rows of C, or of the columns that are summed.
inline DepthBlocks visited(const GatheredConv& g, const ConvProduct& p) {
  return {p.depth_blocks, g.conv.lists, g.conv.pass == Pass::forward};
}

}  // namespace maskfuse::cuda
