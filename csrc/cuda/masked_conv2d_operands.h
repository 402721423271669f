// The operands and results of masked_conv2d's products, as product.h and element_product.h take them.
#pragma once

#include "masked_conv2d.h"
#include "matrix_result.h"
#include "pixel_source.h"

namespace maskfuse::cuda {

// Sizes of one group's product.
struct ConvProduct {
  int64_t m, n, depth_blocks;
  int64_t in, out, padded;  // channels of a group; those of the input in whole pieces
};
inline ConvProduct conv_product(const MaskedConv& c) {
  const ConvShape& s = c.shape;
  const int64_t in = s.in / s.groups, out = s.out / s.groups;
  const int64_t padded = ceil_div(in, kPieceElements) * kPieceElements;
  switch (c.pass) {
    case Pass::forward:
      return {s.pixels(), out, s.taps() * ceil_div(in, kDepth), in, out, padded};
    case Pass::input_grad:
      return {s.batch * s.in_h * s.in_w, in, s.taps() * ceil_div(out, kDepth), in, out, padded};
    default:
      return {out, s.taps() * padded, ceil_div(s.pixels(), kDepth), in, out, padded};
  }
}

inline PixelGeometry geometry_of(const ConvShape& s) {
  return {(int)s.in_h,     (int)s.in_w,  (int)s.out_h, (int)s.out_w,      (int)s.kernel_w,  (int)s.stride_h,
          (int)s.stride_w, (int)s.pad_h, (int)s.pad_w, (int)s.dilation_h, (int)s.dilation_w};
}

// The gradient of the weight, [out][channels][taps], from columns (tap, channel in whole pieces).
template <class T>
struct WeightGradResult {
  using Sum = typename Accumulator<T>::type;

  T* c;
  int64_t rows, channels, padded;
  int taps;
  WeightBits bits;
  int64_t group_step;

  __device__ __forceinline__ WeightGradResult in_group(int group) const {
    WeightGradResult result = *this;
    result.c += group * group_step;
    result.bits.data += group * bits.group_step;
    return result;
  }

  // Whether the mask leaves anything of a tile; every thread of the block asks.
  __device__ __forceinline__ bool wanted(int64_t row, int64_t column, int height, int width) const {
    const int pieces = width / kPieceElements;
    bool any = false;
    for (int i = (int)threadIdx.x; i < height * pieces; i += (int)blockDim.x) {
      const int64_t r = row + i / pieces, at = column + i % pieces * kPieceElements;
      if (r < rows && at < taps * padded) any = any || bits.eight(r, (int)(at / padded), at % padded) != 0;
    }
    return sync_block_or(any);
  }

  __device__ __forceinline__ void write_one(int64_t row, int64_t column, Sum sum) const {
    const int tap = (int)(column / padded);
    const int64_t channel = column - tap * padded;
    if (channel < channels)
      c[(row * channels + channel) * taps + tap] = bits.one(row, tap, channel) ? Rounded<T>::of(sum) : T{};
  }
  __device__ __forceinline__ void write(int64_t row, int64_t column, const float* sums) const {
    for (int e = 0; e < kPieceElements; ++e) write_one(row, column + e, (Sum)sums[e]);
  }
};

inline WeightBits weight_bits(const MaskedConv& c, const ConvProduct& p) {
  const int64_t words = ceil_div(p.in, 32), ld = c.shape.taps() * words;
  return {c.bits, ld, words, p.out * ld};
}

template <class T, bool kAlongDepth>
MaskedSource<T, kAlongDepth, false> weight_source(const MaskedConv& c, const ConvProduct& p) {
  const int64_t ld = c.shape.taps() * p.in;
  MatrixSource<T, kAlongDepth> weight = matrix_source<kAlongDepth>((const T*)c.weight, ld, p.out, p.in);
  weight.vectors = weight.vectors && p.in * sizeof(T) % kPieceBytes == 0;  // taps begin at whole vectors, too
  weight.group_step = p.out * ld;
  return {weight, weight_bits(c, p), weight, false};
}

template <class T>
MatrixResult<T> image_result(const MaskedConv& c, const ConvProduct& p, int64_t channels) {
  MatrixResult<T> result{};
  result.c = (T*)c.result, result.ld = channels, result.rows = p.m, result.columns = p.n, result.group_step = p.n;
  result.vectors = vector_rows(c.result, channels, sizeof(T)) && p.n * sizeof(T) % kPieceBytes == 0;
  result.bias = (const T*)c.bias;
  return result;
}

// Calls go(A, B, result) with the sources of a problem's operands.
template <class T, class Go>
cudaError_t with_operands(const MaskedConv& c, const Go& go) {
  const ConvShape& s = c.shape;
  const ConvProduct p = conv_product(c);
  const PixelGeometry geometry = geometry_of(s);
  const auto blocks = [](int64_t channels) { return (int)(channels > 0 ? ceil_div(channels, kDepth) : 1); };
  const auto vectors = [&](const void* data, int64_t of_group, int64_t of_all) {
    return vector_rows(data, of_all, sizeof(T)) && of_group * sizeof(T) % kPieceBytes == 0;
  };
  switch (c.pass) {
    case Pass::forward: {
      const PixelSource<T, false> pixels{(const T*)c.input,           geometry, p.m, p.in, s.in, blocks(p.in),
                                         vectors(c.input, p.in, s.in)};
      return go(pixels, weight_source<T, true>(c, p), image_result<T>(c, p, s.out));
    }
    case Pass::input_grad: {
      const PixelSource<T, true> pixels{
          (const T*)c.output, geometry, p.m, p.out, s.out, blocks(p.out), vectors(c.output, p.out, s.out)};
      return go(pixels, weight_source<T, false>(c, p), image_result<T>(c, p, s.in));
    }
    default: {
      MatrixSource<T, false> gradient = matrix_source<false>((const T*)c.output, s.out, s.pixels(), p.out);
      gradient.vectors = vectors(c.output, p.out, s.out), gradient.group_step = p.out;
      const PixelColumns<T> pixels{(const T*)c.input, geometry, s.pixels(), p.in,
                                   p.padded,          s.in,     p.n,        vectors(c.input, p.in, s.in)};
      const WeightGradResult<T> result{(T*)c.result,           p.out, p.in, p.padded, (int)s.taps(), weight_bits(c, p),
                                       p.out * p.in * s.taps()};
      return go(gradient, pixels, result);
    }
  }
}

}  // namespace maskfuse::cuda
