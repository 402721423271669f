// Dispatcher ops of masked_conv2d on CUDA. Kernels walk dense images with channels innermost, and weights
// [out][taps][in / groups]: operands that lie otherwise are copied into that order first, results put back behind it.
#include "../cuda/mask_lists.h"
#include "../cuda/masked_conv2d.h"
#include "conv_shape.h"
#include "cuda_choice.h"
#include "cuda_image.h"
#include "cuda_masked_conv2d_library.h"
#include "cuda_masked_linear_library.h"

namespace maskfuse {
namespace {

struct Operands {
  Tensor bits, lists, bias;
};

bool by_library(const cuda::MaskedConv& c, const Tensor& like) {
  return cuda::choose(c, device_of(like)).kernel == cuda::ConvKernel::library;
}

void attach_mask(cuda::MaskedConv& c, Operands& keep, const Tensor& bits, const std::vector<Tensor>& plan,
                 const char* op) {
  const ConvShape& s = c.shape;
  check_taken(s, op);
  const int64_t in = s.in / s.groups, words = mask_words(in);
  check_bits(bits, s.out, s.columns(), op);
  STD_TORCH_CHECK(plan.empty() || plan.size() == (s.taps() > 1 ? 3 : 2), op,
                  ": plan must have no tensors, or lists of rows and of channels, and for larger kernels than 1 x 1 the"
                  " bits by taps, got ",
                  plan.size());
  for (const Tensor& t : plan) {
    const OneDevice guard(op, {{&bits, "bits"}, {&t, "plan"}});
    check_dtype(t, ScalarType::Int, op, "plan");
  }
  if (s.taps() == 1) {
    keep.bits = as_contiguous(bits);
  } else if (!plan.empty()) {
    check_shape(plan[2], {s.out, s.taps() * words}, op, "plan[2]");
    keep.bits = as_contiguous(plan[2]);
  } else {
    const Tensor from = as_contiguous(bits);
    keep.bits = torch::stable::new_empty(bits, {s.out, s.taps() * words});
    check_launch(cuda::mask_by_taps((const uint32_t*)from.const_data_ptr(), s.out, s.taps(), in,
                                    (uint32_t*)keep.bits.mutable_data_ptr(), current_stream(bits)),
                 op);
  }
  c.bits = (const uint32_t*)keep.bits.const_data_ptr();
  if (plan.empty() || s.groups > 1 || c.pass == Pass::weight_grad) return;
  const bool of_rows = c.pass == Pass::forward;
  const cuda::ListShape shape =
      of_rows ? cuda::lists_of_rows(s.out, s.taps(), in) : cuda::lists_of_channels(s.out, s.taps(), in);
  keep.lists = as_contiguous(plan[of_rows ? 0 : 1]);
  if (keep.lists.size(0) == 0) return;  // of a mask whose blocks are not worth leaving out
  check_shape(keep.lists, {shape.groups, 1 + shape.blocks}, op, of_rows ? "plan[0]" : "plan[1]");
  c.lists = (const int32_t*)keep.lists.const_data_ptr();
}

void run(cuda::MaskedConv& c, Tensor& out, const char* op) {
  c.result = out.mutable_data_ptr();
  const cuda::ConvChoice choice = cuda::choose(c, device_of(out));
  if (choice.kernel == cuda::ConvKernel::linear && choice.linear.kernel == cuda::LinearKernel::library)
    return run_library(cuda::matrix_product(c), out, op);
  Tensor workspace;
  if (choice.workspace_bytes > 0) workspace = torch::stable::new_empty(out, {choice.workspace_bytes}, ScalarType::Byte);
  check_launch(cuda::masked_conv2d(c, choice, choice.workspace_bytes > 0 ? workspace.mutable_data_ptr() : nullptr,
                                   current_stream(out)),
               op);
}

Tensor masked_conv2d(const Tensor& input, const Tensor& weight, const Tensor& bits, const std::vector<Tensor>& plan,
                     const std::optional<Tensor>& bias, Ints stride, Ints padding, Ints dilation, int64_t groups) {
  constexpr const char* kOp = "masked_conv2d";
  const OneDevice guard(kOp,
                        {{&input, "input"}, {&weight, "weight"}, {&bits, "bits"}, {bias ? &*bias : nullptr, "bias"}});
  cuda::MaskedConv c{};
  Operands keep;
  c.pass = Pass::forward, c.dtype = dtype_of(input, kOp, "input");
  c.shape = forward_shape(kOp, input, weight, bias, {stride, padding, dilation, groups});
  attach_mask(c, keep, bits, plan, kOp);
  if (by_library(c, input)) return library_forward(c.shape, input, weight, bits, bias, kOp);
  const Tensor x = channels_innermost(input), w = channels_innermost(weight);
  c.input = x.const_data_ptr(), c.weight = w.const_data_ptr();
  if (bias) keep.bias = as_contiguous(*bias), c.bias = keep.bias.const_data_ptr();
  const ConvShape& s = c.shape;
  return image_from(input, s.batch, s.out, s.out_h, s.out_w, [&](Tensor& image) { run(c, image, kOp); });
}

Tensor masked_conv2d_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& bits,
                                const std::vector<Tensor>& plan, Ints input_size, Ints stride, Ints padding,
                                Ints dilation, int64_t groups) {
  constexpr const char* kOp = "masked_conv2d_input_grad";
  const OneDevice guard(kOp, {{&grad, "grad"}, {&weight, "weight"}, {&bits, "bits"}});
  cuda::MaskedConv c{};
  Operands keep;
  c.pass = Pass::input_grad, c.dtype = dtype_of(grad, kOp, "grad");
  c.shape = input_grad_shape(kOp, grad, weight, input_size, {stride, padding, dilation, groups});
  attach_mask(c, keep, bits, plan, kOp);
  if (by_library(c, grad)) return library_input_grad(c.shape, grad, weight, bits, kOp);
  const Tensor dy = channels_innermost(grad), w = channels_innermost(weight);
  c.output = dy.const_data_ptr(), c.weight = w.const_data_ptr();
  const ConvShape& s = c.shape;
  return image_from(grad, s.batch, s.in, s.in_h, s.in_w, [&](Tensor& image) { run(c, image, kOp); });
}

Tensor masked_conv2d_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& bits,
                                 const std::vector<Tensor>& plan, Ints kernel_size, Ints stride, Ints padding,
                                 Ints dilation, int64_t groups) {
  constexpr const char* kOp = "masked_conv2d_weight_grad";
  const OneDevice guard(kOp, {{&grad, "grad"}, {&input, "input"}, {&bits, "bits"}});
  cuda::MaskedConv c{};
  Operands keep;
  c.pass = Pass::weight_grad, c.dtype = dtype_of(grad, kOp, "grad");
  c.shape = weight_grad_shape(kOp, grad, input, kernel_size, {stride, padding, dilation, groups});
  attach_mask(c, keep, bits, plan, kOp);
  if (by_library(c, grad)) return library_weight_grad(c.shape, grad, input, bits, kOp);
  const Tensor dy = channels_innermost(grad), x = channels_innermost(input);
  c.output = dy.const_data_ptr(), c.input = x.const_data_ptr();
  const int64_t sizes[] = {c.shape.out, c.shape.in / groups, c.shape.kernel_h, c.shape.kernel_w};
  Tensor out = new_tensor(grad, sizes, 4);
  if (out.numel() > 0) run(c, out, kOp);
  return out;
}

// As masked_linear_choice; `input_size` is [batch, in, height, width].
std::string masked_conv2d_choice(std::string pass, Ints input_size, Ints kernel_size, int64_t out, Ints stride,
                                 Ints padding, Ints dilation, int64_t groups, ScalarType type, bool lists,
                                 int64_t multiprocessors, int64_t capability) {
  constexpr const char* kOp = "masked_conv2d_choice";
  STD_TORCH_CHECK(input_size.size() == 4 && kernel_size.size() == 2 && multiprocessors > 0, kOp,
                  ": input_size must have 4 numbers and kernel_size 2, and multiprocessors must be positive");
  cuda::MaskedConv c{};
  c.pass = pass_of(pass, kOp), c.dtype = dtype_of(type, kOp, "dtype");
  c.shape = shape_of_conv({stride, padding, dilation, groups}, input_size[0], input_size[1], input_size[2],
                          input_size[3], out, kernel_size[0], kernel_size[1], kOp);
  c.bits = (const uint32_t*)alignof(uint32_t);  // there are some
  c.lists = lists && groups == 1 ? (const int32_t*)alignof(int32_t) : nullptr;
  return describe(cuda::choose(c, {{(int)multiprocessors, 0}, (int)capability, library_use}));
}

}  // namespace
}  // namespace maskfuse

MASKFUSE_CUDA_COMPOSITE(m) { m.impl("masked_conv2d_choice", TORCH_BOX(&maskfuse::masked_conv2d_choice)); }

MASKFUSE_CUDA_IMPL(m) {
  m.impl("masked_conv2d", TORCH_BOX(&maskfuse::masked_conv2d));
  m.impl("masked_conv2d_unrecorded", TORCH_BOX(&maskfuse::masked_conv2d));
  m.impl("masked_conv2d_input_grad", TORCH_BOX(&maskfuse::masked_conv2d_input_grad));
  m.impl("masked_conv2d_weight_grad", TORCH_BOX(&maskfuse::masked_conv2d_weight_grad));
}
