// Dispatcher ops of gathered_conv2d on the CPU: the convolution of `where(channels, input, 0)` for channels of each
// image's own, given as bits [batch, words(in)], or of the same for all, [1, words(in)], and its gradients.
#include "../cpu/gathered_conv2d.h"

#include "channel_index.h"
#include "conv_shape.h"
#include "image.h"
#include "masked_weight.h"
#include "tasks.h"
#include "torch_conv2d.h"

namespace maskfuse {
namespace {

// The image with zeros in channels that are not chosen.
Tensor chosen(const Tensor& image, const Tensor& bits) {
  const Activation from = activation(image, "gathered_conv2d", "input");
  const Tensor words = as_contiguous(bits);
  const auto* const at = (const uint32_t*)words.const_data_ptr();
  const int64_t ld = mask_words(from.channels);
  const Indices list = indices(from.samples * from.channels);
  for (int64_t n = 0; n < from.samples; ++n)
    for (int64_t c = 0; c < from.channels; ++c)
      list[n * from.channels + c] =
          at[(words.size(0) == 1 ? 0 : n) * ld + c / 32] >> (c % 32) & 1 ? (int32_t)c : kNoChannel;
  ChannelCopy copy;
  Tensor result = result_of(from, from.samples, from.channels, &copy);
  if (filled_with_zero(from, copy)) return result;
  copy.channel = list.get(), copy.rows = from.channels;
  for_units(copy, [&](int64_t begin, int64_t end) { copy_channels(copy, begin, end); });
  return result;
}

// Runs the kernel; false where there is none.
bool run(GatheredConv& g, const Tensor& bits) {
  const GatheredTasks tasks = gathered_conv2d_tasks(isa_in_use(), g.conv.dtype, g.conv.pass);
  if (!tasks.phases[0] || g.conv.shape.pixels() == 0 || g.conv.shape.in == 0 || g.conv.shape.out == 0) return false;
  const Tensor words = as_contiguous(bits);
  g.in_channels = (const uint32_t*)words.const_data_ptr(),
  g.in_ld = words.size(0) == 1 ? 0 : mask_words(g.conv.shape.in);
  const GatheredSchedule s = schedule(g, isa_in_use(), (int)torch::stable::get_num_threads());
  if (!fits(s)) return false;
  Buffer once;
  Buffer& buffer = s.shared_bytes > kKeptBytes ? once : thread_shared();
  void* const shared = s.shared_bytes > 0 ? buffer.get(s.shared_bytes) : nullptr;
  run_phases(s.tasks, 2, s.scratch_bytes,
             [&](int phase, int64_t index, void* scratch) { tasks.phases[phase](g, s, index, shared, scratch); });
  return true;
}

Tensor gathered_conv2d(const Tensor& input, const Tensor& weight, const Tensor& bits, const std::optional<Tensor>& bias,
                       Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "gathered_conv2d";
  GatheredConv g{};
  g.conv.pass = Pass::forward;
  g.conv.dtype = dtype_of(input, kOp, "input");
  g.conv.shape = forward_shape(kOp, input, weight, bias, {stride, padding, dilation, 1});
  check_bits(bits, bits.dim() == 2 && bits.size(0) == 1 ? 1 : input.size(0), input.size(1), kOp);
  const ConvShape& s = g.conv.shape;
  const Tensor w = as_contiguous(weight), x = as_image(input);
  g.conv.weight = w.const_data_ptr(), g.conv.weight_ld = s.columns();
  Tensor added;
  if (bias) {
    added = as_contiguous(*bias);
    g.conv.bias = added.const_data_ptr();
  }
  Tensor out = empty_image(input, s.batch, s.out, s.out_h, s.out_w);
  g.conv.input = image_of(x), g.conv.output = image_of(out);
  if (run(g, bits)) return out;
  if (s.in > 0) return convolution(s, chosen(input, bits), w, bias);
  return convolution_of_nothing(s, input, weight, bias);
}

Tensor gathered_conv2d_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& bits, Ints input_size,
                                  Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "gathered_conv2d_input_grad";
  GatheredConv g{};
  g.conv.pass = Pass::input_grad;
  g.conv.dtype = dtype_of(grad, kOp, "grad");
  g.conv.shape = input_grad_shape(kOp, grad, weight, input_size, {stride, padding, dilation, 1});
  const ConvShape& s = g.conv.shape;
  check_bits(bits, bits.dim() == 2 && bits.size(0) == 1 ? 1 : s.batch, s.in, kOp);
  const Tensor w = as_contiguous(weight), dy = as_image(grad);
  g.conv.weight = w.const_data_ptr(), g.conv.weight_ld = s.columns();
  Tensor out = empty_image(grad, s.batch, s.in, s.in_h, s.in_w);
  g.conv.input = image_of(out), g.conv.output = image_of(dy);
  // The kernel spreads a stride's zeros among the gradient, which it would mostly multiply by.
  if (s.stride_h * s.stride_w == 1 && run(g, bits)) return out;
  if (s.pixels() == 0 || s.in == 0 || s.out == 0) return torch::stable::zero_(out);
  return chosen(convolution_backward(s, grad, out, w, true), bits);
}

Tensor gathered_conv2d_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& bits, Ints kernel_size,
                                   Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "gathered_conv2d_weight_grad";
  dtype_of(grad, kOp, "grad");
  const ConvShape s = weight_grad_shape(kOp, grad, input, kernel_size, {stride, padding, dilation, 1});
  check_bits(bits, bits.dim() == 2 && bits.size(0) == 1 ? 1 : s.batch, s.in, kOp);
  const int64_t shape[] = {s.out, s.in, s.kernel_h, s.kernel_w};
  Tensor weight = new_tensor(grad, shape, 4);
  const Tensor x = as_image(input), dy = as_image(grad);
  GatheredConv g{};
  g.conv.pass = Pass::weight_grad, g.conv.dtype = dtype_of(grad, kOp, "grad"), g.conv.shape = s;
  g.conv.input = image_of(x), g.conv.output = image_of(dy);
  g.conv.weight_grad = weight.mutable_data_ptr(), g.conv.weight_grad_ld = s.columns();
  if (run(g, bits)) return weight;
  if (s.pixels() == 0 || s.in == 0 || s.out == 0) return torch::stable::zero_(weight);
  return as_contiguous(convolution_backward(s, grad, chosen(input, bits), weight, false));
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CPU, m) {
  m.impl("gathered_conv2d", TORCH_BOX(&maskfuse::gathered_conv2d));
  m.impl("gathered_conv2d_input_grad", TORCH_BOX(&maskfuse::gathered_conv2d_input_grad));
  m.impl("gathered_conv2d_weight_grad", TORCH_BOX(&maskfuse::gathered_conv2d_weight_grad));
}
