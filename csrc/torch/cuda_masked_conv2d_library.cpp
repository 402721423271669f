#include "cuda_masked_conv2d_library.h"

#include "../cuda/masked_copy.h"
#include "torch_conv2d.h"

namespace maskfuse {
namespace {

// The weight as a matrix [out, in / groups x taps], the order of the bits.
cuda::MaskedGemm rows_of(const ConvShape& s, const Tensor& bits, Dtype dtype) {
  cuda::MaskedGemm g{};
  g.pass = Pass::forward, g.dtype = dtype, g.n = s.out, g.k = s.columns();
  g.bits = (const uint32_t*)bits.const_data_ptr(), g.bits_ld = mask_words(s.columns());
  return g;
}

Tensor empty_weight(const Tensor& like, const ConvShape& s) {
  const int64_t sizes[] = {s.out, s.in / s.groups, s.kernel_h, s.kernel_w};
  return new_tensor(like, sizes, 4);
}

Tensor masked(const ConvShape& s, const Tensor& weight, const Tensor& bits, const char* op) {
  const Tensor from = as_contiguous(weight), words = as_contiguous(bits);
  Tensor copy = empty_weight(weight, s);
  cuda::MaskedGemm g = rows_of(s, words, dtype_of(weight, op, "weight"));
  g.b = from.const_data_ptr(), g.b_ld = g.k;
  check_launch(cuda::masked_copy(g, 0, s.out, copy.mutable_data_ptr(), current_stream(weight)), op);
  return copy;
}

// The result in the strides that traced code was told of.
Tensor as_promised(const Tensor& result, const Tensor& like) {
  Tensor image = empty_image(like, result.size(0), result.size(1), result.size(2), result.size(3));
  bool same = true;
  for (int64_t d = 0; d < 4; ++d) same = same && result.stride(d) == image.stride(d);
  if (same) return result;
  torch::stable::copy_(image, result);
  return image;
}

// What each image chooses of `from`, whose channels are innermost, into `to`, which lies the same way.
void choose_channels(const ConvShape& s, const Tensor& from, const Tensor& bits, const Tensor& to, const char* op) {
  cuda::MaskedImage image{};
  image.dtype = dtype_of(from, op, "input"), image.batch = s.batch, image.pixels = s.in_h * s.in_w;
  image.channels = s.in, image.bits = (const uint32_t*)bits.const_data_ptr();
  image.bits_ld = bits.size(0) == 1 ? 0 : mask_words(s.in);
  image.from = from.const_data_ptr(), image.to = to.mutable_data_ptr();
  check_launch(cuda::masked_image(image, current_stream(from)), op);
}

Tensor chosen(const ConvShape& s, const Tensor& input, const Tensor& bits, const char* op) {
  const Tensor from = channels_innermost(input);
  Tensor image = new_channels_last(input, s.batch, s.in, s.in_h, s.in_w);
  choose_channels(s, from, bits, image, op);
  return image;
}

}  // namespace

Tensor library_forward(const ConvShape& s, const Tensor& input, const Tensor& weight, const Tensor& bits,
                       const std::optional<Tensor>& bias, const char* op) {
  return as_promised(convolution(s, input, masked(s, weight, bits, op), bias), input);
}

Tensor library_input_grad(const ConvShape& s, const Tensor& grad, const Tensor& weight, const Tensor& bits,
                          const char* op) {
  // Its shape is all that is read of it.
  const Tensor input = empty_image(grad, s.batch, s.in, s.in_h, s.in_w);
  return as_promised(convolution_backward(s, grad, input, masked(s, weight, bits, op), true), grad);
}

Tensor library_weight_grad(const ConvShape& s, const Tensor& grad, const Tensor& input, const Tensor& bits,
                           const char* op) {
  Tensor result = as_contiguous(convolution_backward(s, grad, input, empty_weight(grad, s), false));
  const Tensor words = as_contiguous(bits);
  cuda::MaskedGemm g = rows_of(s, words, dtype_of(grad, op, "grad"));
  g.pass = Pass::weight_grad, g.m = s.out, g.n = s.columns(), g.c = result.mutable_data_ptr(), g.c_ld = g.n;
  check_launch(cuda::masked_result(g, current_stream(grad)), op);
  return result;
}

Tensor library_gathered(const ConvShape& s, const Tensor& input, const Tensor& weight, const Tensor& bits,
                        const std::optional<Tensor>& bias, const char* op) {
  return as_promised(convolution(s, chosen(s, input, bits, op), weight, bias), input);
}

Tensor library_gathered_input_grad(const ConvShape& s, const Tensor& grad, const Tensor& weight, const Tensor& bits,
                                   const char* op) {
  return image_from(grad, s.batch, s.in, s.in_h, s.in_w, [&](Tensor& image) {
    const Tensor input = new_channels_last(grad, s.batch, s.in, s.in_h, s.in_w);
    choose_channels(s, channels_innermost(convolution_backward(s, grad, input, weight, true)), bits, image, op);
  });
}

Tensor library_gathered_weight_grad(const ConvShape& s, const Tensor& grad, const Tensor& input, const Tensor& bits,
                                    const char* op) {
  return as_contiguous(convolution_backward(s, grad, chosen(s, input, bits, op), empty_weight(grad, s), false));
}

}  // namespace maskfuse
