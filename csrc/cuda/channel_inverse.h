// The inverse of indices, on the device.
#pragma once

#include "channel_list.h"

namespace maskfuse::cuda {

// `rows` lists of `count` entries each, and where their inverses go, which invert_indices of ../cpu/channel_scatter.h
// describes: first [rows, index.size], next [rows, count]. Entries out of range are left out.
struct ChannelInverse {
  ChannelList index;
  int64_t rows, count;
  int32_t *first, *next;
};

// Both in one launch. rows == 0: there is no such index.
cudaError_t channel_inverse(const ChannelInverse& channels, const ChannelInverse& samples, cudaStream_t stream);

}  // namespace maskfuse::cuda
