// A masked convolution as a problem, on raw pointers.
//
// With S the mask's bits, one an element of the weight W[out][in / groups][kernel_h][kernel_w], and taps (dy, dx):
//
//   forward       Y[n,o,y,x]  = bias[o] + sum W S[o,c,dy,dx] X[n, c, y stride_h + dy dilation_h - pad_h, ...]
//   input_grad    dX, its adjoint in X, of dY
//   weight_grad   dW[o,c,dy,dx] = S[o,c,dy,dx] sum dY[n,o,y,x] X[n, c, y stride_h + ...]
#pragma once

#include "masked_linear.h"

namespace maskfuse {

struct ConvShape {
  int64_t batch, in, in_h, in_w, out, out_h, out_w, kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
  int64_t spread_h = 1, spread_w = 1;  // the input with spread - 1 zeros between its pixels: see forward_form

  constexpr int64_t taps() const { return kernel_h * kernel_w; }
  constexpr int64_t columns() const { return in / groups * taps(); }
  constexpr int64_t pixels() const { return batch * out_h * out_w; }
};

// Activations of four dimensions: strides in elements.
struct Image {
  void* data;
  int64_t n, c, y, x;
};

struct MaskedConv {
  Pass pass;
  Dtype dtype;
  ConvShape shape;
  Image input, output;  // X or dX, Y or dY
  const void* weight;   // forward, input_grad
  int64_t weight_ld;    // rows of the weight and its gradient are contiguous
  void* weight_grad;
  int64_t weight_grad_ld;
  const uint32_t* bits;
  int64_t bits_ld;
  const Plan* plan;      // or null; for input_grad, of the mask with channels exchanged
  const Packed* packed;  // or null; forward only
  const void* bias;      // [out] or null; forward only
  bool library;          // whoever runs the problem has a library's convolution at hand
  bool channels_last;    // of images: the library works on these as they are, for estimates

  static constexpr size_t kPlanned = 3;  // tensors of an op's plan with a packed weight
};

// The convolution that the forward pass or input_grad is: the latter is one of the gradient, with a stride's zeros
// between its pixels, by kernels that are turned round, into the input's gradient.
MaskedConv forward_form(const MaskedConv& problem);

// One axis of a convolution: how an output place and a tap find the input's.
struct Axis {
  int64_t kernel, stride, dilation;
};
inline Axis rows_of(const ConvShape& c) { return {c.kernel_h, c.stride_h, c.dilation_h}; }
inline Axis columns_of(const ConvShape& c) { return {c.kernel_w, c.stride_w, c.dilation_w}; }

// What the outputs [0, n) of an axis read, staged: of one phase (tap x dilation modulo stride) side by side, phase
// after phase, so that neighbouring outputs read neighbours. Returns how many places that are; `first`, or null, takes
// the one that output 0 reads for each tap, and `at`, or null, which of the input each is, from the first that is read
// on.
int64_t staged(const Axis& axis, int64_t n, int64_t* first, int64_t* at = nullptr);

}  // namespace maskfuse
