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
    case LinearKernel::product_sm90:
      return "product_sm90";
    case LinearKernel::decode:
      return "decode";
    default:
      return "library";
  }
}

namespace {

// Whether the library multiplies a masked copy. Of this, a pass over the weight costs less than our products lose to
// the library's: on an H100 at 8192 rows of a 4096 x 4096 weight 0.36 ms and 0.46 in half types, 5.5 and 23 in float32.
// Lists of blocks that leave out enough (mask.py, LISTED) are Hopper's kernel's. Few rows read the weight once.
bool leave_to_library(const MaskedGemm& g, const Device& device) {
  constexpr int64_t kFewRows = 64;
  if (!library_is_faster(device.library, (double)g.m * (double)g.n * (double)g.k)) return false;
  if (device.library == Library::always) return true;
  return (g.pass == Pass::weight_grad ? g.k : g.m) >= kFewRows && !(dtype_size(g.dtype) == 2 && g.lists);
}

// Hopper's kernel, where it is estimated to be faster than product.h's. Its tiles are large and whole, so the last
// round of them may leave most of the device idle, where product.h cuts small ones, and the depth. mma.sync does three
// fifths of what wgmma does on such a device.
bool choose_sm90(const MaskedGemm& g, const Device& device, LinearChoice* choice) {
  if (device.capability != 90 || !masked_linear_sm90_takes(g)) return false;
  constexpr double kPortableRate = 0.6;
  const double whole = (double)(g.m * g.n) / (kListed * kListed);  // in the smaller tiles
  double best = whole / kPortableRate / device.multiprocessors;
  for (bool large : {false, true}) {
    const int64_t tiles = masked_linear_sm90_tiles(g, large);
    const double rounds = (double)((large ? 2 : 1) * ceil_div(tiles, device.multiprocessors));
    if (rounds > best) continue;
    const int64_t blocks = tiles < device.multiprocessors ? tiles : device.multiprocessors;
    best = rounds, *choice = {LinearKernel::product_sm90, large, 1, 0, {}, (int)blocks};
  }
  return choice->kernel == LinearKernel::product_sm90;
}

}  // namespace

bool library_is_faster(Library library, double multiplications) {
  constexpr double kWorthSeveralLaunches = 1 << 26;
  return multiplications > 0 &&
         (library == Library::always || (library == Library::faster && multiplications >= kWorthSeveralLaunches));
}

LinearChoice choose(const MaskedGemm& g, const Device& device) {
  if (g.tiles && g.pass == Pass::forward && g.m <= kDecodeRows) {
    const DecodePlan plan = decode_plan(*g.tiles, g.m, device);
    return {LinearKernel::decode, false, (int)plan.splits, decode_workspace_bytes(*g.tiles, g.m, plan), plan};
  }
  // From so many rows on, gathering and putting back costs little beside the product: by arithmetic.
  constexpr int64_t kLibraryRows = 256;
  if (g.channels && (g.pass == Pass::weight_grad ? g.k : g.m) >= kLibraryRows)
    return {LinearKernel::library, false, 1, 0, {}};
  if (leave_to_library(g, device)) return {LinearKernel::library, false, 1, 0, {}};
  const int64_t depth_blocks = ceil_div(g.k, kDepth), element = dtype_size(g.dtype);
  if (element > 2) {
    const int splits = element_splits(g.m, g.n, depth_blocks, 1, element, device.multiprocessors);
    return {LinearKernel::element, false, splits, splits > 1 ? splits * g.m * g.n * element : 0, {}};
  }
  LinearChoice hopper{};
  if (choose_sm90(g, device, &hopper)) return hopper;
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
    case LinearKernel::product_sm90:
      return masked_linear_sm90(g, choice, stream);
    case LinearKernel::library:
      return cudaErrorInvalidValue;
    default:
      return masked_linear_decode({*g.tiles, g.a, g.a_ld, g.m, g.bias, g.c, g.c_ld}, choice.decode, workspace, stream);
  }
}

}  // namespace maskfuse::cuda
