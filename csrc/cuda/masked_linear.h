// Masked matrix products on the device: the problems of csrc/cpu/masked_linear.h, on device memory.
#pragma once

#include "../cpu/masked_linear.h"
#include "masked_linear_decode.h"

namespace maskfuse::cuda {

struct MaskedGemm : maskfuse::MaskedGemm {
  // The blocks of 64 of the depth that hold active weights, for each 128 of the result's columns: mask_lists.h. Of the
  // mask for forward, of its transpose for input_grad. For weight_grad the mask's again, which are blocks of the
  // result. Null: all are visited.
  const int32_t* lists;
  const PackedTiles* tiles;  // the weight packed, or null; forward
  bool channels;             // whoever runs the problem knows which whole rows and columns of the weight are active
};

// When a whole product is left to torch's library, between passes that apply the mask.
enum class Library { never, faster, always };

// What choices depend on: multiprocessors, the shared memory that a block may ask for, the compute capability, ten
// times, and whether there is a library.
struct Device : DecodeDevice {
  int capability;
  Library library = Library::never;
};

enum class LinearKernel {
  naive,         // a thread an element of the result, one loop: any type, the one to read first
  element,       // float32 and float64: register tiles of single elements (element_product.h)
  product,       // half types: tensor cores (product.h)
  product_sm90,  // half types under bits on Hopper (product_sm90.h)
  decode,        // forward of few rows with a packed weight: masked_linear_decode.h
  library,       // torch's product, of the active rows and columns or of a masked copy: the caller runs it
};
const char* kernel_name(LinearKernel kernel);

struct LinearChoice {
  LinearKernel kernel;
  bool large;  // product: tiles of 128 x 128, else of 64 x 64; product_sm90: of 256 x 128, else of 128 x 128
  int splits;  // parts of the depth, whose sums are added behind them
  int64_t workspace_bytes;
  DecodePlan decode;
  int blocks = 0;  // product_sm90: that share the tiles
};

// Whether a product of so many multiplications is left to the library.
bool library_is_faster(Library library, double multiplications);

// The kernel and how it is cut, from sizes and type alone, and of a packed weight its longest slab.
LinearChoice choose(const MaskedGemm& problem, const Device& device);

// `workspace` is 16-byte aligned. Bitwise the same for the same choice.
cudaError_t masked_linear(const MaskedGemm& problem, const LinearChoice& choice, void* workspace, cudaStream_t stream);

// One kernel each, in files of their own; masked_linear chooses between them.
cudaError_t masked_linear_naive(const MaskedGemm& problem, cudaStream_t stream);
cudaError_t masked_linear_element(const MaskedGemm& problem, int splits, void* partial, cudaStream_t stream);
cudaError_t masked_linear_product(const MaskedGemm& problem, const LinearChoice& choice, float* partial,
                                  cudaStream_t stream);
cudaError_t masked_linear_sm90(const MaskedGemm& problem, const LinearChoice& choice, cudaStream_t stream);

// Whether masked_linear_sm90 takes a problem: half types under bits, operands whose rows are aligned to 16 bytes and do
// not overlap; and its tiles.
bool masked_linear_sm90_takes(const MaskedGemm& problem);
int64_t masked_linear_sm90_tiles(const MaskedGemm& problem, bool large);

}  // namespace maskfuse::cuda
