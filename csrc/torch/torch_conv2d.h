// torch's own convolution, through the dispatcher.
#pragma once

#include "../cpu/masked_conv2d.h"
#include "image.h"

namespace maskfuse {

inline std::vector<int64_t> pair(int64_t h, int64_t w) { return {h, w}; }

inline Tensor convolution(const ConvShape& s, const Tensor& input, const Tensor& weight,
                          const std::optional<Tensor>& bias) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  StableIValue stack[] = {from(input),
                          from(weight),
                          from(bias),
                          from(pair(s.stride_h, s.stride_w)),
                          from(pair(s.pad_h, s.pad_w)),
                          from(pair(s.dilation_h, s.dilation_w)),
                          from(false),
                          from(pair(0, 0)),
                          from(s.groups)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack, TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

// A convolution without input channels, whose outputs torch leaves out: that of one channel of zeros.
inline Tensor convolution_of_nothing(ConvShape s, const Tensor& input, const Tensor& weight,
                                     const std::optional<Tensor>& bias) {
  const int64_t kernels[] = {s.out, 1, s.kernel_h, s.kernel_w};
  Tensor image = empty_image(input, s.batch, 1, s.in_h, s.in_w), kernel = new_tensor(weight, kernels, 4);
  s.groups = 1;
  return convolution(s, torch::stable::zero_(image), torch::stable::zero_(kernel), bias);
}

// The gradient of the input, or of the weight. Of the operand itself only the shape is read.
inline Tensor convolution_backward(const ConvShape& s, const Tensor& grad, const Tensor& input, const Tensor& weight,
                                   bool of_input) {
  const bool wanted[] = {of_input, !of_input, false};
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  StableIValue stack[] = {from(grad),
                          from(input),
                          from(weight),
                          from(std::optional<std::vector<int64_t>>()),
                          from(pair(s.stride_h, s.stride_w)),
                          from(pair(s.pad_h, s.pad_w)),
                          from(pair(s.dilation_h, s.dilation_w)),
                          from(false),
                          from(pair(0, 0)),
                          from(s.groups),
                          from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted, 3))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack, TORCH_ABI_VERSION));
  const Tensor results[] = {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
  return results[of_input ? 0 : 1];
}

}  // namespace maskfuse
