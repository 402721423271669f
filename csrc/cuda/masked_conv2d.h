// Masked convolutions on the device, as implicit products: the problems of csrc/cpu/conv2d.h, on device memory.
//
// With pixels as rows, forward is Y[pixel][out] = sum over (tap, in) X W; input_grad the same with the images' roles
// exchanged; weight_grad dW[out][tap, in] = sum over pixels dY X. Images are dense and channels_last, the weight is
// [out][taps][in / groups], its bits the same way (mask_lists.h), and its gradient as torch has it, [out][in /
// groups][taps].
#pragma once

#include "../cpu/conv2d.h"
#include "masked_linear.h"
#include "stream.h"

namespace maskfuse::cuda {

struct MaskedConv {
  Pass pass;
  Dtype dtype;
  ConvShape shape;
  const void *input, *output;  // images; forward: input and its result, input_grad: output and its result, ...
  const void* weight;          // forward, input_grad
  void* result;                // Y, dX or dW
  const uint32_t* bits;        // [out][taps][words(in / groups)]
  const int32_t* lists;        // of rows for forward, of channels for input_grad; or null; one group only
  const void* bias;            // [out] or null; forward
};

enum class ConvKernel {
  naive,    // a thread an element of the result: any type, the one to read first
  element,  // float32 and float64: register tiles of single elements (element_product.h)
  product,  // half types: tensor cores (product.h)
  linear,   // kernels of one pixel that meet every pixel: a product of matrices, by masked_linear's kernels
  library,  // torch's convolution of a masked copy: the caller runs it
};
const char* kernel_name(ConvKernel kernel);

struct ConvChoice {
  ConvKernel kernel;
  bool large;
  int splits;
  int64_t workspace_bytes;
  LinearChoice linear = {};  // where `kernel` is that
};

// Why no kernel takes a convolution of this shape, or null.
const char* refused(const ConvShape& shape);

// The kernel and how it is cut, from sizes, type and alignment alone.
ConvChoice choose(const MaskedConv& problem, const Device& device);

// A convolution that is a product of matrices as that product.
MaskedGemm matrix_product(const MaskedConv& problem);

// The same of implicit products alone.
ConvChoice choose_implicit(const MaskedConv& problem, int multiprocessors);

// `workspace` is 16-byte aligned. Bitwise the same for the same choice.
cudaError_t masked_conv2d(const MaskedConv& problem, const ConvChoice& choice, void* workspace, cudaStream_t stream);

// One kernel each, in files of their own; masked_conv2d chooses between them.
cudaError_t masked_conv2d_naive(const MaskedConv& problem, cudaStream_t stream);
cudaError_t masked_conv2d_element(const MaskedConv& problem, int splits, void* partial, cudaStream_t stream);
cudaError_t masked_conv2d_product(const MaskedConv& problem, const ConvChoice& choice, float* partial,
                                  cudaStream_t stream);

}  // namespace maskfuse::cuda
