// Which kernel runs a convolution of chosen channels, how it is cut, and which blocks it is given lists of.
#include "gathered_conv2d_operands.h"

namespace maskfuse::cuda {

// A list says something of the depth where its blocks are not all of the channels, or each some pixels' of all of them.
ListShape lists_of(const GatheredConv& g) {
  const ConvProduct p = conv_product(g.conv);
  if (p.m == 0 || p.n == 0 || p.depth_blocks == 0) return {0, 0};
  if (g.conv.pass == Pass::forward && p.in > kDepth) return {ceil_div(p.m, kListed), p.depth_blocks};
  if (g.conv.pass == Pass::weight_grad && g.ld > 0 && p.in > kListed) return {ceil_div(p.n, kListed), p.depth_blocks};
  return {0, 0};
}

GatheredChoice choose(const GatheredConv& g, int multiprocessors) {
  GatheredChoice choice{choose_implicit(g.conv, multiprocessors), lists_of(g), 0};
  choice.workspace_bytes = choice.product.workspace_bytes + choice.lists.groups * (1 + choice.lists.blocks) * 4;
  return choice;
}

cudaError_t gathered_conv2d(const GatheredConv& problem, const GatheredChoice& choice, void* workspace,
                            cudaStream_t stream) {
  GatheredConv g = problem;
  if (choice.product.kernel != ConvKernel::naive && choice.lists.groups > 0) {
    auto* const lists = (int32_t*)((char*)workspace + choice.product.workspace_bytes);
    const cudaError_t error = gathered_conv2d_lists(g, lists, stream);
    if (error != cudaSuccess) return error;
    g.conv.lists = lists;
  }
  switch (choice.product.kernel) {
    case ConvKernel::naive:
      return gathered_conv2d_naive(g, stream);
    case ConvKernel::element:
      return gathered_conv2d_element(g, choice.product.splits, workspace, stream);
    default:
      return gathered_conv2d_product(g, choice.product, (float*)workspace, stream);
  }
}

}  // namespace maskfuse::cuda
