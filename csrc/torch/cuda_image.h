// Images as kernels on CUDA take and leave them: dense, channels innermost. Operands that lie otherwise are copied into
// that order first, results put back behind the kernel.
#pragma once

#include "cuda_library.h"
#include "image.h"

namespace maskfuse {

// The tensor itself where its channels are innermost and nothing lies between its elements; else a copy that is so.
inline Tensor channels_innermost(const Tensor& t) {
  int64_t step = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != step)
      return torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
    step *= t.size(d);
  }
  return t;
}

// An uninitialised image for a kernel to write, channels innermost. Its strides are those that the result will have
// (ops/masked_conv2d.py: image_like) wherever these describe that order: of one channel or one pixel both formats do.
inline Tensor new_channels_innermost(const Tensor& like, int64_t batch, int64_t channels, int64_t height,
                                     int64_t width) {
  const int64_t sizes[] = {batch, channels, height, width};
  const bool either = batch == 0 || channels <= 1 || height * width <= 1;
  if (either && !is_channels_last(like)) return new_tensor(like, sizes, 4);
  const int64_t strides[] = {height * width * channels, 1, width * channels, channels};
  return new_strided(like, sizes, strides, 4);
}

// What a kernel wrote, in the memory format of `like`.
inline Tensor in_format_of(const Tensor& like, const Tensor& image) {
  return is_channels_last(like) ? image : as_contiguous(image);
}

}  // namespace maskfuse
