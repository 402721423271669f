// masked_linear in float32 and float64, element by element.
#include "element_product.h"
#include "masked_linear_operands.h"

namespace maskfuse::cuda {
namespace {

template <class T>
cudaError_t run(const MaskedGemm& g, int splits, void* partial, cudaStream_t stream) {
  return with_operands<T>(g, [&](const auto& left, const auto& right) {
    return launch_element_product<T>(left, right, result_of<T>(g), g.m, g.n, depth_of(g), splits, 1, partial, stream);
  });
}

}  // namespace

cudaError_t masked_linear_element(const MaskedGemm& g, int splits, void* partial, cudaStream_t stream) {
  if (g.dtype == Dtype::f32) return run<float>(g, splits, partial, stream);
  if (g.dtype == Dtype::f64) return run<double>(g, splits, partial, stream);
  return cudaErrorInvalidValue;
}

}  // namespace maskfuse::cuda
