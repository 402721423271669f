// Copies channels of activations on the device. ../cpu/channel_gather.h says what is computed.
#pragma once

#include "../cpu/channel_gather.h"
#include "channel_list.h"
#include "stream.h"

namespace maskfuse::cuda {

// Copies by the lists given: those of `copy` are not looked at. One launch, and none for an empty output.
// cudaErrorInvalidValue: 2^31 pixels or more.
cudaError_t channel_gather(const ChannelCopy& copy, const ChannelList& channels, const ChannelList& samples,
                           cudaStream_t stream);

}  // namespace maskfuse::cuda
