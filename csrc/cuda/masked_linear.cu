// Which kernel runs a product of masked_linear, and how it is cut.
#include "element_product.h"
#include "masked_linear.h"

namespace maskfuse::cuda {

const char* kernel_name(LinearKernel kernel) {
  switch (kernel) {
    case LinearKernel::naive:
      return "naive";
    case LinearKernel::element:
      return "element";
    case LinearKernel::product:
      return "product";
    case LinearKernel::decode:
      return "decode";
    default:
      return "library";
  }
}

LinearChoice choose(const MaskedGemm& g, const Device& device) {
  if (g.tiles && g.pass == Pass::forward && g.m <= kDecodeRows) {
    const DecodePlan plan = decode_plan(*g.tiles, g.m, device);
    return {LinearKernel::decode, false, (int)plan.splits, decode_workspace_bytes(*g.tiles, g.m, plan), plan};
  }
  // From so many rows on, gathering and putting back costs little beside the product: by arithmetic, not yet measured.
  constexpr int64_t kLibraryRows = 256;
  if (g.channels && (g.pass == Pass::weight_grad ? g.k : g.m) >= kLibraryRows)
    return {LinearKernel::library, false, 1, 0, {}};
  const int64_t depth_blocks = ceil_div(g.k, kDepth), element = dtype_size(g.dtype);
  if (element > 2) {
    const int splits = element_splits(g.m, g.n, depth_blocks, 1, element, device.multiprocessors);
    return {LinearKernel::element, false, splits, splits > 1 ? splits * g.m * g.n * element : 0, {}};
  }
  const ProductCut cut = cut_product(g.m, g.n, depth_blocks, 1, device.multiprocessors);
  return {LinearKernel::product, cut.large, cut.splits, partial_floats(cut, g.m, g.n) * 4, {}};
}

cudaError_t masked_linear(const MaskedGemm& g, const LinearChoice& choice, void* workspace, cudaStream_t stream) {
  switch (choice.kernel) {
    case LinearKernel::naive:
      return masked_linear_naive(g, stream);
    case LinearKernel::element:
      return masked_linear_element(g, choice.splits, workspace, stream);
    case LinearKernel::product:
      return masked_linear_product(g, choice, (float*)workspace, stream);
    case LinearKernel::library:
      return cudaErrorInvalidValue;
    default:
      return masked_linear_decode({*g.tiles, g.a, g.a_ld, g.m, g.bias, g.c, g.c_ld}, choice.decode, workspace, stream);
  }
}

}  // namespace maskfuse::cuda
