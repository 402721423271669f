// What the channel ops on CUDA share: index tensors as the kernels read them.
#pragma once

#include "../cuda/channel_list.h"
#include "channel_layout.h"
#include "cuda_library.h"

namespace maskfuse {

// An index tensor, int32 or int64, [count] or [rows, count], with entries in [-size, size), or null. The kernels skip
// other entries; where MASKFUSE_DEBUG is 1 they are an error, and so are, with `unique`, entries that a row has twice.
struct DeviceIndex {
  Tensor tensor;  // contiguous
  cuda::ChannelList list;
};
DeviceIndex device_index(const Tensor* index, int64_t size, bool unique, const char* op, const char* name);

// Fills the result where the input has nothing to copy from; returns whether that was so.
inline bool filled_with_zero(const Activation& input, Tensor* result) {
  if (result->numel() > 0 && input.samples * input.channels > 0) return false;
  if (result->numel() > 0) torch::stable::zero_(*result);
  return true;
}

// Device memory for `count` positions. It is the caching allocator's, which hands it on in the order of the stream.
inline Tensor positions(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {count}, ScalarType::Int);
}

}  // namespace maskfuse
