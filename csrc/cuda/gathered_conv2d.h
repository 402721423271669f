// Convolutions of the channels that each image chooses, on the device: masked_conv2d.h's products of a dense weight, in
// one group, on `where(channels, input, 0)`. The channels are bits, and nothing waits for the host to look at them.
//
//   forward      pieces of the input are masked between memory and shared memory. Of the depth, 128 pixels of the
//                output visit the blocks (tap, 64 channels) in which any of their images has a channel
//   input_grad   tiles of pixels x channels that no image of theirs chooses are zeros; others are masked as they are
//                stored
//   weight_grad  the input is masked as in forward; 128 columns (tap, channel) visit the blocks of 64 pixels whose
//                images have any of the channels; of the same channels for all, tiles without one are zeros
//
// Nothing is read of a product that is left out, so that a NaN in a channel that is not chosen, or that meets one in
// input_grad, is nowhere. A weight that meets chosen channels of no image may go unread, too: what it gives where it is
// not finite is unspecified.
//
// What this saves, by counting: whole blocks that are not chosen, as gates of groups of channels leave them, take no
// time (measured on an H100, half of four blocks: two thirds of the time of all; the library, which skips none, takes a
// third of that, and is used for all but small images). Of channels that are chosen one by one, half of them, no block
// of 64 is empty; the product then takes what that of all channels takes, and spares the copy of the input with zeros.
// Reading single channels by a list instead would halve the tensor cores' work and take eight loads in the place of one
// for both operands.
#pragma once

#include "mask_lists.h"
#include "masked_conv2d.h"

namespace maskfuse::cuda {

struct GatheredConv {
  MaskedConv conv;           // in one group, without bits and lists
  const uint32_t* channels;  // [batch][ld], or the same for all images where ld is 0
  int64_t ld;
};

struct GatheredChoice {
  ConvChoice product;  // as masked_conv2d's of the same shape, but for the workspace
  ListShape lists;     // made in the workspace, behind the product's; no groups: none
  int64_t workspace_bytes;
};

GatheredChoice choose(const GatheredConv& problem, int multiprocessors);

// The lists of blocks that are visited, of 128 pixels each for forward and of 128 columns each for weight_grad; no
// groups where they could leave out little.
ListShape lists_of(const GatheredConv& problem);
cudaError_t gathered_conv2d_lists(const GatheredConv& problem, int32_t* lists, cudaStream_t stream);

// `workspace` is 16-byte aligned. Bitwise the same for the same choice.
cudaError_t gathered_conv2d(const GatheredConv& problem, const GatheredChoice& choice, void* workspace,
                            cudaStream_t stream);

// One kernel each, in files of their own; gathered_conv2d chooses between them. `conv.lists` is null or as above.
cudaError_t gathered_conv2d_naive(const GatheredConv& problem, cudaStream_t stream);
cudaError_t gathered_conv2d_element(const GatheredConv& problem, int splits, void* partial, cudaStream_t stream);
cudaError_t gathered_conv2d_product(const GatheredConv& problem, const ConvChoice& choice, float* partial,
                                    cudaStream_t stream);

}  // namespace maskfuse::cuda
