// Reads an entry of a list.
#pragma once

#include "channel_list.h"
#include "machine.h"

namespace maskfuse::cuda {

// In [0, size), or kNoChannel.
__device__ __forceinline__ int32_t listed(const ChannelList& list, int64_t at) {
  int64_t entry = list.wide ? ((const int64_t*)list.entries)[at] : ((const int32_t*)list.entries)[at];
  if (entry < 0) entry += list.wrap;
  return (uint64_t)entry < (uint64_t)list.size ? (int32_t)entry : kNoChannel;
}

}  // namespace maskfuse::cuda
