// Which kernel runs a convolution, and how it is cut.
#include <initializer_list>

#include "element_product.h"
#include "masked_conv2d_operands.h"

namespace maskfuse::cuda {

const char* kernel_name(ConvKernel kernel) {
  switch (kernel) {
    case ConvKernel::naive:
      return "naive";
    case ConvKernel::element:
      return "element";
    case ConvKernel::linear:
      return "linear";
    case ConvKernel::library:
      return "library";
    default:
      return "product";
  }
}

// Pixels and places on an axis are counted in 32 bits.
const char* refused(const ConvShape& s) {
  constexpr int64_t kMost = int64_t{1} << 30;
  for (int64_t size : {s.in_h + 2 * s.pad_h, s.in_w + 2 * s.pad_w, s.stride_h, s.stride_w, s.dilation_h * s.kernel_h,
                       s.dilation_w * s.kernel_w})
    if (size >= kMost) return "an axis with its padding has 2^30 places or more";
  for (int64_t pixels : {s.in_h * s.in_w, s.batch * s.in_h * s.in_w, s.pixels()})
    if (pixels >= 2 * kMost) return "images have 2^31 pixels or more";
  return nullptr;
}

namespace {

bool pointwise(const ConvShape& s) {
  return s.taps() == 1 && s.groups == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_h == 0 && s.pad_w == 0;
}

}  // namespace

// A pointwise convolution: pixels are rows.
MaskedGemm matrix_product(const MaskedConv& c) {
  const ConvShape& s = c.shape;
  MaskedGemm g{};
  g.pass = c.pass, g.dtype = c.dtype, g.bits = c.bits, g.bits_ld = ceil_div(s.in, 32), g.lists = c.lists;
  g.bias = c.bias, g.c = c.result;
  switch (c.pass) {
    case Pass::forward:
      g.m = s.pixels(), g.n = s.out, g.k = s.in, g.a = c.input, g.b = c.weight;
      break;
    case Pass::input_grad:
      g.m = s.pixels(), g.n = s.in, g.k = s.out, g.a = c.output, g.b = c.weight;
      break;
    default:
      g.m = s.out, g.n = s.in, g.k = s.pixels(), g.a = c.output, g.b = c.input;
  }
  g.a_ld = c.pass == Pass::forward ? s.in : s.out, g.b_ld = s.in, g.c_ld = g.n;
  return g;
}

ConvChoice choose_implicit(const MaskedConv& c, int multiprocessors) {
  const ConvProduct p = conv_product(c);
  const int64_t element = dtype_size(c.dtype);
  const int groups = (int)c.shape.groups;
  if (element > 2) {
    const int splits = element_splits(p.m, p.n, p.depth_blocks, groups, element, multiprocessors);
    return {ConvKernel::element, false, splits, splits > 1 ? groups * splits * p.m * p.n * element : 0};
  }
  const ProductCut cut = cut_product(p.m, p.n, p.depth_blocks, groups, multiprocessors);
  return {ConvKernel::product, cut.large, cut.splits, partial_floats(cut, p.m, p.n) * 4};
}

ConvChoice choose(const MaskedConv& c, const Device& device) {
  if (!pointwise(c.shape)) {
    // On an H100 the library's convolutions are five times as fast as product.h's, forward, and more backward (256
    // channels, 3 x 3, in half types): no block that is left out makes up for that, and a kernel is masked in no time.
    const ConvShape& s = c.shape;
    const double multiplications = (double)s.pixels() * (double)s.out * (double)s.columns();
    if (library_is_faster(device.library, multiplications)) return {ConvKernel::library, false, 1, 0};
    return choose_implicit(c, device.multiprocessors);
  }
  const LinearChoice linear = choose(matrix_product(c), device);
  return {ConvKernel::linear, linear.large, linear.splits, linear.workspace_bytes, linear};
}

cudaError_t masked_conv2d(const MaskedConv& c, const ConvChoice& choice, void* workspace, cudaStream_t stream) {
  switch (choice.kernel) {
    case ConvKernel::naive:
      return masked_conv2d_naive(c, stream);
    case ConvKernel::element:
      return masked_conv2d_element(c, choice.splits, workspace, stream);
    case ConvKernel::linear:
      return masked_linear(matrix_product(c), choice.linear, workspace, stream);
    case ConvKernel::library:
      return cudaErrorInvalidValue;
    default:
      return masked_conv2d_product(c, choice, (float*)workspace, stream);
  }
}

}  // namespace maskfuse::cuda
