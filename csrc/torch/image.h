// Activations of four dimensions, [batch, channels, height, width], in either memory format.
#pragma once

#include "../cpu/masked_conv2d.h"
#include "channel_layout.h"

namespace maskfuse {

inline Tensor new_channels_last(const Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const int64_t sizes[] = {batch, channels, height, width};
  const int64_t strides[] = {height * width * channels, 1, width * channels, channels};
  return new_strided(like, sizes, strides, 4);
}

// An uninitialised image of `like`'s dtype and memory format, with the strides that `image_like` of
// ops/masked_conv2d.py tells traced code.
inline Tensor empty_image(const Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  if (is_channels_last(like)) return new_channels_last(like, batch, channels, height, width);
  const int64_t sizes[] = {batch, channels, height, width};
  return new_tensor(like, sizes, 4);
}

// The tensor itself where pixels of a row, or channels of a pixel, lie side by side; else a copy.
inline Tensor as_image(const Tensor& t) {
  const bool rows = t.stride(3) == 1 || t.size(3) <= 1, channels = t.stride(1) == 1;
  return rows || channels ? t : torch::stable::contiguous(t);
}

inline Image image_of(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2),
          t.size(3) <= 1 ? 1 : t.stride(3)};
}

}  // namespace maskfuse
