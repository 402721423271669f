// What the channel ops share: activations as the kernels see them, index tensors as lists, and running in threads.
#pragma once

#include <atomic>
#include <limits>
#include <memory>

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

// Whether a tensor of four or five dimensions is channels_last, by its strides.
bool is_channels_last(const Tensor& t);

// The input itself where a kernel can read it in place, else a dense copy.
Activation activation(const Tensor& input, const char* op, const char* name);

// An uninitialised result for the samples and channels of `copy`, in the memory format of `like`; fills in `copy`'s
// pointers, sizes and distances.
Tensor result_of(const Activation& like, int64_t samples, int64_t channels, ChannelCopy* copy);

// Runs work(begin, end) over all units of a copy, in threads where it is large.
template <class Work>
void for_units(const ChannelCopy& copy, const Work& work) {
  constexpr int64_t kBytesWorthAThread = 1 << 15;
  const int64_t units = copy_units(copy);
  torch::stable::parallel_for(
      0, units, std::max<int64_t>(1, kBytesWorthAThread / std::max<int64_t>(1, copy_unit_bytes(copy))), work);
}

// Fills `to` where the input has nothing to copy from; returns whether that was so.
bool filled_with_zero(const Activation& input, const ChannelCopy& copy);

using Indices = std::unique_ptr<int32_t[]>;
inline Indices indices(int64_t count) { return Indices(new int32_t[std::max<int64_t>(1, count)]); }

// Runs work(begin, end) over rows of `columns` indices each, in threads where they are many.
template <class Work>
void for_index_rows(int64_t rows, int64_t columns, const Work& work) {
  constexpr int64_t kIndicesWorthAThread = 1 << 14;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kIndicesWorthAThread / std::max<int64_t>(1, columns)),
                              work);
}

// An index tensor, int32 or int64, [count] or [rows, count], with entries in [-size, size), as numbers in [0, size).
Indices resolved(const Tensor& index, int64_t size, const char* op, const char* name);

inline void check_axis(int64_t size, const char* op, const char* name) {
  STD_TORCH_CHECK(size >= 0 && size <= std::numeric_limits<int32_t>::max(), op, ": ", name,
                  " must be at least 0 and below 2^31, got ", size);
}

// Checks that `channels` is an index of one list, or of one a sample for `samples` samples; returns the length.
int64_t channel_count(const Tensor& channels, int64_t samples, const char* op);

}  // namespace maskfuse
