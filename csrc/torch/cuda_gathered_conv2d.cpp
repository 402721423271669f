// Dispatcher ops of gathered_conv2d on CUDA. Kernels walk dense images with channels innermost, and weights
// [out][taps][in]; see cuda_image.h.
#include "../cuda/gathered_conv2d.h"
#include "conv_shape.h"
#include "cuda_image.h"
#include "cuda_masked_conv2d_library.h"

namespace maskfuse {
namespace {

// The problem, and what must live until its launch.
struct Problem {
  cuda::GatheredConv g{};
  Tensor bits;

  Problem(Pass pass, Dtype dtype, const ConvShape& shape, const Tensor& given, const char* op) {
    check_taken(shape, op);
    check_bits(given, given.dim() == 2 && given.size(0) == 1 ? 1 : shape.batch, shape.in, op);
    bits = as_contiguous(given);
    g.conv.pass = pass, g.conv.dtype = dtype, g.conv.shape = shape;
    g.channels = (const uint32_t*)bits.const_data_ptr();
    g.ld = bits.size(0) == 1 ? 0 : mask_words(shape.in);
  }

  // On an H100 the library's convolution of a copy with zeros takes a third of what product.h's takes, also where half
  // of all blocks of 64 channels are not chosen.
  bool by_library(const Tensor& like) const {
    const ConvShape& s = g.conv.shape;
    return cuda::library_is_faster(device_of(like).library, (double)s.pixels() * (double)s.out * (double)s.columns());
  }

  void run(Tensor& out, const char* op) {
    g.conv.result = out.mutable_data_ptr();
    const cuda::GatheredChoice choice = cuda::choose(g, multiprocessors(out));
    Tensor workspace;
    void* at = nullptr;
    if (choice.workspace_bytes > 0) {
      workspace = torch::stable::new_empty(out, {choice.workspace_bytes}, ScalarType::Byte);
      at = workspace.mutable_data_ptr();
    }
    check_launch(cuda::gathered_conv2d(g, choice, at, current_stream(out)), op);
  }
};

Tensor gathered_conv2d(const Tensor& input, const Tensor& weight, const Tensor& bits, const std::optional<Tensor>& bias,
                       Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "gathered_conv2d";
  const OneDevice guard(kOp,
                        {{&input, "input"}, {&weight, "weight"}, {&bits, "bits"}, {bias ? &*bias : nullptr, "bias"}});
  const Dtype dtype = dtype_of(input, kOp, "input");
  const ConvShape s = forward_shape(kOp, input, weight, bias, {stride, padding, dilation, 1});
  Problem problem(Pass::forward, dtype, s, bits, kOp);
  if (problem.by_library(input)) return library_gathered(s, input, weight, problem.bits, bias, kOp);
  const Tensor x = channels_innermost(input), w = channels_innermost(weight);
  Tensor added;
  cuda::MaskedConv& c = problem.g.conv;
  c.input = x.const_data_ptr(), c.weight = w.const_data_ptr();
  if (bias) added = as_contiguous(*bias), c.bias = added.const_data_ptr();
  return image_from(input, s.batch, s.out, s.out_h, s.out_w, [&](Tensor& image) { problem.run(image, kOp); });
}

Tensor gathered_conv2d_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& bits, Ints input_size,
                                  Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "gathered_conv2d_input_grad";
  const OneDevice guard(kOp, {{&grad, "grad"}, {&weight, "weight"}, {&bits, "bits"}});
  const Dtype dtype = dtype_of(grad, kOp, "grad");
  const ConvShape s = input_grad_shape(kOp, grad, weight, input_size, {stride, padding, dilation, 1});
  Problem problem(Pass::input_grad, dtype, s, bits, kOp);
  if (problem.by_library(grad)) return library_gathered_input_grad(s, grad, weight, problem.bits, kOp);
  const Tensor dy = channels_innermost(grad), w = channels_innermost(weight);
  problem.g.conv.output = dy.const_data_ptr(), problem.g.conv.weight = w.const_data_ptr();
  return image_from(grad, s.batch, s.in, s.in_h, s.in_w, [&](Tensor& image) { problem.run(image, kOp); });
}

Tensor gathered_conv2d_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& bits, Ints kernel_size,
                                   Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "gathered_conv2d_weight_grad";
  const OneDevice guard(kOp, {{&grad, "grad"}, {&input, "input"}, {&bits, "bits"}});
  const Dtype dtype = dtype_of(grad, kOp, "grad");
  const ConvShape s = weight_grad_shape(kOp, grad, input, kernel_size, {stride, padding, dilation, 1});
  Problem problem(Pass::weight_grad, dtype, s, bits, kOp);
  if (problem.by_library(grad)) return library_gathered_weight_grad(s, grad, input, problem.bits, kOp);
  const Tensor dy = channels_innermost(grad), x = channels_innermost(input);
  problem.g.conv.output = dy.const_data_ptr(), problem.g.conv.input = x.const_data_ptr();
  const int64_t sizes[] = {s.out, s.in, s.kernel_h, s.kernel_w};
  Tensor out = new_tensor(grad, sizes, 4);
  if (out.numel() > 0) problem.run(out, kOp);
  return out;
}

}  // namespace
}  // namespace maskfuse

MASKFUSE_CUDA_IMPL(m) {
  m.impl("gathered_conv2d", TORCH_BOX(&maskfuse::gathered_conv2d));
  m.impl("gathered_conv2d_input_grad", TORCH_BOX(&maskfuse::gathered_conv2d_input_grad));
  m.impl("gathered_conv2d_weight_grad", TORCH_BOX(&maskfuse::gathered_conv2d_weight_grad));
}
