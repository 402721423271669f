// Choices of CUDA kernels in words, for `explain`.
#pragma once

#include <string>

#include "../cuda/masked_conv2d.h"

namespace maskfuse {

// A kernel, its tiles, and into how many parts of the depth it cuts a product.
inline std::string describe(const char* kernel, const char* tiles, int splits) {
  return std::string(kernel) + tiles + (splits > 1 ? " in " + std::to_string(splits) + " parts" : "");
}

inline std::string describe(const cuda::LinearChoice& choice) {
  const char* tiles = "";
  if (choice.kernel == cuda::LinearKernel::product) tiles = choice.large ? " 128x128" : " 64x64";
  if (choice.kernel == cuda::LinearKernel::product_sm90) tiles = choice.large ? " 256x128" : " 128x128";
  return describe(cuda::kernel_name(choice.kernel), tiles, choice.splits);
}

inline std::string describe(const cuda::ConvChoice& choice) {
  if (choice.kernel == cuda::ConvKernel::linear) return "linear: " + describe(choice.linear);
  const bool tiles = choice.kernel == cuda::ConvKernel::product;
  return describe(cuda::kernel_name(choice.kernel), tiles ? choice.large ? " 128x128" : " 64x64" : "", choice.splits);
}

}  // namespace maskfuse
