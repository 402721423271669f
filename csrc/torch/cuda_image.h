// Images as kernels on CUDA take and leave them: dense, channels innermost. Operands that lie otherwise are copied into
// that order first, results put back behind the kernel.
#pragma once

#include "../cuda/masked_conv2d.h"
#include "cuda_library.h"
#include "image.h"

namespace maskfuse {

// Raises where no kernel takes a convolution of this shape.
inline void check_taken(const ConvShape& shape, const char* op) {
  const char* const refused = cuda::refused(shape);
  STD_TORCH_CHECK(!refused, op, ": there is no CUDA kernel for this convolution: ", refused);
}

// Whether channels are innermost and nothing lies between elements.
inline bool has_channels_innermost(const Tensor& t) {
  int64_t step = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != step) return false;
    step *= t.size(d);
  }
  return true;
}

// The tensor itself where it lies so, else a copy.
inline Tensor channels_innermost(const Tensor& t) {
  return has_channels_innermost(t) ? t : torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
}

// A new image [batch, channels, height, width] in the memory format of `like`, into which write(image) has written one
// with channels innermost; not called for one without elements. Strides are those of the format also where one channel
// or one pixel makes both lie alike: traced code was told them (ops/masked_conv2d.py, image_like).
template <class Write>
Tensor image_from(const Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width,
                  const Write& write) {
  Tensor image = empty_image(like, batch, channels, height, width);
  if (image.numel() == 0) return image;
  const bool in_place = has_channels_innermost(image);
  Tensor written = in_place ? image : new_channels_last(like, batch, channels, height, width);
  write(written);
  if (!in_place) torch::stable::copy_(image, written);
  return image;
}

}  // namespace maskfuse
