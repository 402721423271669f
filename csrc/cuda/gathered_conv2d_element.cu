// gathered_conv2d in float32 and float64, element by element.
#include "element_product.h"
#include "gathered_conv2d_operands.h"

namespace maskfuse::cuda {
namespace {

template <class T>
cudaError_t run(const GatheredConv& g, int splits, void* partial, cudaStream_t stream) {
  const ConvProduct p = conv_product(g.conv);
  return with_operands<T>(g, [&](const auto& left, const auto& right, const auto& result) {
    return launch_element_product<T>(left, right, result, p.m, p.n, visited(g, p), splits, 1, partial, stream);
  });
}

}  // namespace

cudaError_t gathered_conv2d_element(const GatheredConv& g, int splits, void* partial, cudaStream_t stream) {
  if (g.conv.dtype == Dtype::f32) return run<float>(g, splits, partial, stream);
  if (g.conv.dtype == Dtype::f64) return run<double>(g, splits, partial, stream);
  return cudaErrorInvalidValue;
}

}  // namespace maskfuse::cuda
