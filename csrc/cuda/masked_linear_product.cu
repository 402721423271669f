// masked_linear in half types on tensor cores.
#include "masked_linear_operands.h"

namespace maskfuse::cuda {
namespace {

template <class T>
cudaError_t run(const MaskedGemm& g, const LinearChoice& choice, float* partial, cudaStream_t stream) {
  const ProductCut cut{choice.large, choice.splits, 1};
  return with_operands<T>(g, [&](const auto& left, const auto& right) {
    return launch_product<T>(left, right, result_of<T>(g), g.m, g.n, depth_of(g), cut, partial, stream);
  });
}

}  // namespace

cudaError_t masked_linear_product(const MaskedGemm& g, const LinearChoice& choice, float* partial,
                                  cudaStream_t stream) {
  if (g.dtype == Dtype::bf16) return run<Bf16>(g, choice, partial, stream);
  if (g.dtype == Dtype::f16) return run<Fp16>(g, choice, partial, stream);
  return cudaErrorInvalidValue;
}

}  // namespace maskfuse::cuda
