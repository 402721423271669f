// What the channel ops share on every device: activations as the kernels see them.
#pragma once

#include <limits>

#include "../cpu/channel_gather.h"
#include "tensor.h"

namespace maskfuse {

// [samples, channels, ...] with what lies behind the channels as one dimension. Strides are in elements.
struct Activation {
  Tensor tensor;
  bool channels_last;
  int64_t samples, channels, pixels;
  int64_t sample_stride, channel_stride, pixel_stride;
};

inline void check_axis(int64_t size, const char* op, const char* name) {
  STD_TORCH_CHECK(size >= 0 && size <= std::numeric_limits<int32_t>::max(), op, ": ", name,
                  " must be at least 0 and below 2^31, got ", size);
}

// Whether a tensor of four or five dimensions is channels_last, by its strides.
//
// It is torch's own rule for suggest_memory_format: the strides rise from the channels over the pixels to the samples.
// python/maskfuse/_memory_format.py has the same rule for traced code.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 && t.dim() != 5) return false;
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  const auto fits = [&](int64_t d) {
    if (t.size(d) == 0 || t.stride(d) < least) return false;
    if (d == 0 && least == t.stride(1)) return false;  // N111 and N11W: both formats fit, and planes are the usual
    least = t.stride(d) * std::max<int64_t>(1, t.size(d));
    return true;
  };
  if (!fits(1)) return false;
  for (int64_t d = t.dim() - 1; d >= 2; --d)
    if (!fits(d)) return false;
  return fits(0);
}

// The distance between pixels where the trailing dimensions are one dimension of equal steps, else -1.
inline int64_t pixel_stride(const Tensor& t) {
  int64_t stride = 1, next = -1;
  for (int64_t d = t.dim() - 1; d >= 2; --d) {
    if (t.size(d) == 1) continue;
    if (next < 0)
      stride = t.stride(d);
    else if (t.stride(d) != next)
      return -1;
    next = t.stride(d) * t.size(d);
  }
  return stride;
}

// The input itself where a kernel can read it in place, else a dense copy.
inline Activation activation(const Tensor& input, const char* op, const char* name) {
  STD_TORCH_CHECK(input.dim() >= 2, op, ": ", name, " must have shape [samples, channels, ...], got ", shape_of(input));
  Activation a{};
  a.channels_last = is_channels_last(input);
  a.tensor = input;
  int64_t stride = pixel_stride(input);
  if (a.channels_last ? stride < 0 : stride != 1) {
    using torch::headeronly::MemoryFormat;
    const auto format = !a.channels_last   ? MemoryFormat::Contiguous
                        : input.dim() == 4 ? MemoryFormat::ChannelsLast
                                           : MemoryFormat::ChannelsLast3d;
    a.tensor = torch::stable::contiguous(input, format);
    stride = pixel_stride(a.tensor);
  }
  a.samples = input.size(0), a.channels = input.size(1), a.pixels = 1;
  for (int64_t d = 2; d < input.dim(); ++d) a.pixels *= input.size(d);
  a.sample_stride = a.tensor.stride(0), a.channel_stride = a.tensor.stride(1), a.pixel_stride = stride;
  check_axis(a.samples, op, "the number of samples");
  check_axis(a.channels, op, "the number of channels");
  return a;
}

// An uninitialised result for the samples and channels of `copy`, in the memory format of `like`; fills in `copy`'s
// pointers, sizes and distances.
inline Tensor result_of(const Activation& like, int64_t samples, int64_t channels, ChannelCopy* copy) {
  const Tensor& t = like.tensor;
  std::vector<int64_t> sizes(t.sizes().begin(), t.sizes().end());
  sizes[0] = samples, sizes[1] = channels;
  Tensor result;
  if (like.channels_last) {
    std::vector<int64_t> strides(sizes.size());
    strides[1] = 1;
    int64_t step = channels;
    for (int64_t d = t.dim() - 1; d >= 2; --d) strides[d] = step, step *= sizes[d];
    strides[0] = step;
    result = new_strided(t, sizes.data(), strides.data(), t.dim());
  } else {
    result = new_tensor(t, sizes.data(), t.dim());
  }
  const auto element = (int64_t)t.element_size();
  *copy = {};
  copy->samples = samples, copy->channels = channels, copy->pixels = like.pixels, copy->element = element;
  copy->channels_last = like.channels_last || like.pixels == 1, copy->from_channels = like.channels;
  copy->from = (const char*)t.const_data_ptr(), copy->to = (char*)result.mutable_data_ptr();
  copy->from_sample = like.sample_stride * element, copy->from_channel = like.channel_stride * element;
  copy->from_pixel = like.pixel_stride * element;
  return result;
}

// Checks that `channels` is an index of one list, or of one a sample for `samples` samples; returns the length.
inline int64_t channel_count(const Tensor& channels, int64_t samples, const char* op) {
  STD_TORCH_CHECK(channels.dim() == 1 || (channels.dim() == 2 && channels.size(0) == samples), op,
                  ": channels must have shape [channels] or [", samples, ", channels], got ", shape_of(channels));
  const int64_t count = channels.size(channels.dim() - 1);
  check_axis(count, op, "the number of channels");
  return count;
}

}  // namespace maskfuse
