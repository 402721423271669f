// The passes over a weight that go with a product by torch's library: a copy of the weight with its mask applied, and
// the mask applied to a gradient. Bound by the bytes moved.
#pragma once

#include "masked_linear.h"

namespace maskfuse::cuda {

// Rows [begin, end) of the weight, B of forward [n, k] or input_grad [k, n], under its mask, into `to`, contiguous.
cudaError_t masked_copy(const MaskedGemm& problem, int64_t begin, int64_t end, void* to, cudaStream_t stream);

// C of weight_grad, which holds the product, under its mask; of a gate the scores' gradient beside it.
cudaError_t masked_result(const MaskedGemm& problem, cudaStream_t stream);

// An image [batch][pixels][channels] under bits [batch][bits_ld], or where bits_ld is 0 [bits_ld] for all: what is not
// chosen becomes zero. `to` may be `from`.
struct MaskedImage {
  Dtype dtype;
  int64_t batch, pixels, channels;
  const uint32_t* bits;
  int64_t bits_ld;
  const void* from;
  void* to;
};
cudaError_t masked_image(const MaskedImage& image, cudaStream_t stream);

}  // namespace maskfuse::cuda
