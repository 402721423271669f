// Channels back in their places, with those that an index names more than once added.
#pragma once

#include "../cpu/channel_scatter.h"
#include "stream.h"

namespace maskfuse::cuda {

// What sum_channels of ../cpu/channel_scatter.h does for all units, in one launch; none for an empty output. A channel
// that is named once is copied. cudaErrorInvalidValue: 2^31 pixels or more.
cudaError_t channel_scatter(const ChannelSum& sum, cudaStream_t stream);

}  // namespace maskfuse::cuda
