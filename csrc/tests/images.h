// Convolutions to test, and images for them.
#pragma once

#include "masked_conv2d.h"
#include "operands.h"

namespace maskfuse::test {

// An image in exactly its bytes, in either layout; values are [n][c][y][x].
struct Pixels {
  Matrix matrix;
  bool channels_last;
  int64_t n, c, h, w;

  Pixels(Dtype dtype, bool channels_last, int64_t n, int64_t c, int64_t h, int64_t w)
      : matrix(dtype, 1, n * c * h * w), channels_last(channels_last), n(n), c(c), h(h), w(w) {}

  Image image() {
    if (channels_last) return {matrix.bytes.data(), h * w * c, 1, w * c, c};
    return {matrix.bytes.data(), c * h * w, h * w, w, 1};
  }
  int64_t at(int64_t i, int64_t channel, int64_t y, int64_t x) {
    const Image s = image();
    return i * s.n + channel * s.c + y * s.y + x * s.x;
  }
  double value(int64_t i, int64_t channel, int64_t y, int64_t x) { return matrix.values[at(i, channel, y, x)]; }
};

struct Case {
  int64_t batch, in, out, h, w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
      groups = 1;

  ConvShape shape() const {
    const Case& c = *this;
    ConvShape s{c.batch,
                c.in,
                c.h,
                c.w,
                c.out,
                (c.h + 2 * c.pad_h - c.dilation_h * (c.kernel_h - 1) - 1) / c.stride_h + 1,
                (c.w + 2 * c.pad_w - c.dilation_w * (c.kernel_w - 1) - 1) / c.stride_w + 1,
                c.kernel_h,
                c.kernel_w,
                c.stride_h,
                c.stride_w,
                c.pad_h,
                c.pad_w,
                c.dilation_h,
                c.dilation_w,
                c.groups};
    return s;
  }
};

}  // namespace maskfuse::test
