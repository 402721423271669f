// masked_conv2d in half types on tensor cores.
#include "masked_conv2d_operands.h"

namespace maskfuse::cuda {
namespace {

template <class T>
cudaError_t run(const MaskedConv& c, const ConvChoice& choice, float* partial, cudaStream_t stream) {
  const ConvProduct p = conv_product(c);
  const ProductCut cut{choice.large, choice.splits, (int)c.shape.groups};
  const DepthBlocks depth{p.depth_blocks, c.lists, false};
  return with_operands<T>(c, [&](const auto& left, const auto& right, const auto& result) {
    return launch_product<T>(left, right, result, p.m, p.n, depth, cut, partial, stream);
  });
}

}  // namespace

cudaError_t masked_conv2d_product(const MaskedConv& c, const ConvChoice& choice, float* partial, cudaStream_t stream) {
  if (c.dtype == Dtype::bf16) return run<Bf16>(c, choice, partial, stream);
  if (c.dtype == Dtype::f16) return run<Fp16>(c, choice, partial, stream);
  return cudaErrorInvalidValue;
}

}  // namespace maskfuse::cuda
