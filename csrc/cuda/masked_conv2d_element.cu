// masked_conv2d in float32 and float64, element by element.
#include "element_product.h"
#include "masked_conv2d_operands.h"

namespace maskfuse::cuda {
namespace {

template <class T>
cudaError_t run(const MaskedConv& c, int splits, void* partial, cudaStream_t stream) {
  const ConvProduct p = conv_product(c);
  const DepthBlocks depth{p.depth_blocks, c.lists, false};
  return with_operands<T>(c, [&](const auto& left, const auto& right, const auto& result) {
    return launch_element_product<T>(left, right, result, p.m, p.n, depth, splits, (int)c.shape.groups, partial,
                                     stream);
  });
}

}  // namespace

cudaError_t masked_conv2d_element(const MaskedConv& c, int splits, void* partial, cudaStream_t stream) {
  if (c.dtype == Dtype::f32) return run<float>(c, splits, partial, stream);
  if (c.dtype == Dtype::f64) return run<double>(c, splits, partial, stream);
  return cudaErrorInvalidValue;
}

}  // namespace maskfuse::cuda
