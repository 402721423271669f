// Indices as their tensors have them. No kernel rewrites them first: each resolves the entries that it reads.
#pragma once

#include "../cpu/channel_gather.h"
#include "stream.h"

namespace maskfuse::cuda {

// A list of channels or samples as a kernel reads it. Entries outside of [0, size) name nothing: what they would have
// given is zero, and nothing is read or written for them.
struct ChannelList {
  const void* entries;  // null: there is none, and each number is its own
  bool wide;            // int64_t, else int32_t
  int32_t size;
  int32_t wrap;  // added to negative entries
};

// The caller's index, which counts from the end where it is negative.
inline ChannelList index_list(const void* entries, bool wide, int64_t size) {
  return {entries, wide, (int32_t)size, (int32_t)size};
}

// A list that a kernel made, in which negative entries name nothing.
inline ChannelList plain_list(const int32_t* entries, int64_t size) { return {entries, false, (int32_t)size, 0}; }

}  // namespace maskfuse::cuda
