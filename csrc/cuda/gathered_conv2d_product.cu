// gathered_conv2d in half types on tensor cores.
#include "gathered_conv2d_operands.h"

namespace maskfuse::cuda {
namespace {

template <class T>
cudaError_t run(const GatheredConv& g, const ConvChoice& choice, float* partial, cudaStream_t stream) {
  const ConvProduct p = conv_product(g.conv);
  const ProductCut cut{choice.large, choice.splits, 1};
  return with_operands<T>(g, [&](const auto& left, const auto& right, const auto& result) {
    return launch_product<T>(left, right, result, p.m, p.n, visited(g, p), cut, partial, stream);
  });
}

}  // namespace

cudaError_t gathered_conv2d_product(const GatheredConv& g, const ConvChoice& choice, float* partial,
                                    cudaStream_t stream) {
  if (g.conv.dtype == Dtype::bf16) return run<Bf16>(g, choice, partial, stream);
  if (g.conv.dtype == Dtype::f16) return run<Fp16>(g, choice, partial, stream);
  return cudaErrorInvalidValue;
}

}  // namespace maskfuse::cuda
