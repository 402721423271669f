// Operands of a convolution as ops have them, checked.
#pragma once

#include <algorithm>
#include <limits>

#include "../cpu/masked_conv2d.h"
#include "tensor.h"

namespace maskfuse {

using Ints = std::vector<int64_t>;

struct Geometry {
  const Ints &stride, &padding, &dilation;
  int64_t groups;
};

inline void check_image(const Tensor& t, const char* op, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, op, ": ", name, " must have shape [batch, channels, height, width], got ", shape_of(t));
}

// Sizes of a convolution of images of in_h x in_w; throws where they do not fit.
inline ConvShape shape_of_conv(const Geometry& g, int64_t batch, int64_t in, int64_t in_h, int64_t in_w, int64_t out,
                               int64_t kernel_h, int64_t kernel_w, const char* op) {
  const auto two = [&](const Ints& values, const char* name, int64_t least) {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();  // sums and products of sizes cannot overflow
    STD_TORCH_CHECK(
        values.size() == 2 && std::min(values[0], values[1]) >= least && std::max(values[0], values[1]) <= kMost, op,
        ": ", name, " must be two integers, at least ", least, " and below 2^31");
  };
  two(g.stride, "stride", 1);
  two(g.padding, "padding", 0);
  two(g.dilation, "dilation", 1);
  STD_TORCH_CHECK(g.groups >= 1 && in % g.groups == 0 && out % g.groups == 0, op, ": groups ", g.groups,
                  " must divide ", in, " input and ", out, " output channels");
  STD_TORCH_CHECK(kernel_h >= 1 && kernel_w >= 1, op, ": kernel must not be empty, got ", kernel_h, " x ", kernel_w);
  ConvShape s{};
  s.batch = batch, s.in = in, s.in_h = in_h, s.in_w = in_w, s.out = out;
  s.kernel_h = kernel_h, s.kernel_w = kernel_w, s.groups = g.groups;
  s.stride_h = g.stride[0], s.stride_w = g.stride[1], s.pad_h = g.padding[0], s.pad_w = g.padding[1];
  s.dilation_h = g.dilation[0], s.dilation_w = g.dilation[1];
  const int64_t reach_h = s.dilation_h * (kernel_h - 1) + 1, reach_w = s.dilation_w * (kernel_w - 1) + 1;
  STD_TORCH_CHECK(in_h + 2 * s.pad_h >= reach_h && in_w + 2 * s.pad_w >= reach_w, op, ": kernel of ", reach_h, " x ",
                  reach_w, " with its dilation is larger than the padded input of ", in_h + 2 * s.pad_h, " x ",
                  in_w + 2 * s.pad_w);
  s.out_h = (in_h + 2 * s.pad_h - reach_h) / s.stride_h + 1;
  s.out_w = (in_w + 2 * s.pad_w - reach_w) / s.stride_w + 1;
  return s;
}

inline void check_weight(const Tensor& weight, const char* op) {
  STD_TORCH_CHECK(weight.dim() == 4, op, ": weight must have shape [out, in / groups, height, width], got ",
                  shape_of(weight));
}

// The shape of a pass's convolution; throws where its operands do not fit each other.
inline ConvShape forward_shape(const char* op, const Tensor& input, const Tensor& weight,
                               const std::optional<Tensor>& bias, const Geometry& geometry) {
  check_image(input, op, "input");
  check_weight(weight, op);
  check_same_dtype(input, "input", weight, "weight", op);
  STD_TORCH_CHECK(input.size(1) == weight.size(1) * geometry.groups, op, ": input ", shape_of(input),
                  " does not fit weight ", shape_of(weight), " in ", geometry.groups, " groups");
  const ConvShape shape = shape_of_conv(geometry, input.size(0), input.size(1), input.size(2), input.size(3),
                                        weight.size(0), weight.size(2), weight.size(3), op);
  if (bias) {
    check_same_dtype(input, "input", *bias, "bias", op);
    check_shape(*bias, {shape.out}, op, "bias");
  }
  return shape;
}

inline ConvShape input_grad_shape(const char* op, const Tensor& grad, const Tensor& weight, const Ints& size,
                                  const Geometry& geometry) {
  check_image(grad, op, "grad");
  check_weight(weight, op);
  check_same_dtype(grad, "grad", weight, "weight", op);
  STD_TORCH_CHECK(size.size() == 2, op, ": input_size must be two integers, got ", size.size());
  STD_TORCH_CHECK(size[0] >= 0 && size[1] >= 0, op, ": input_size must not be negative, got [", size[0], ", ", size[1],
                  "]");
  const ConvShape shape = shape_of_conv(geometry, grad.size(0), weight.size(1) * geometry.groups, size[0], size[1],
                                        weight.size(0), weight.size(2), weight.size(3), op);
  check_shape(grad, {shape.batch, shape.out, shape.out_h, shape.out_w}, op, "grad");
  return shape;
}

inline ConvShape weight_grad_shape(const char* op, const Tensor& grad, const Tensor& input, const Ints& kernel,
                                   const Geometry& geometry) {
  check_image(grad, op, "grad");
  check_image(input, op, "input");
  check_same_dtype(grad, "grad", input, "input", op);
  STD_TORCH_CHECK(kernel.size() == 2, op, ": kernel_size must be two integers, got ", kernel.size());
  const ConvShape shape = shape_of_conv(geometry, input.size(0), input.size(1), input.size(2), input.size(3),
                                        grad.size(1), kernel[0], kernel[1], op);
  check_shape(grad, {shape.batch, shape.out, shape.out_h, shape.out_w}, op, "grad");
  return shape;
}

}  // namespace maskfuse
