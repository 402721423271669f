// Lists of the active channels of each sample, made on the device.
#pragma once

#include "stream.h"

namespace maskfuse::cuda {

// mask [samples, channels] bytes 0/1, contiguous -> to [samples, most]: the active channels of a sample in rising
// order, then kNoChannel. Active ones past `most` are left out.
cudaError_t active_channels(const uint8_t* mask, int64_t samples, int64_t channels, int64_t most, int32_t* to,
                            cudaStream_t stream);

// The inverse: to [samples, channels], the position of each active channel in its sample's list, else kNoChannel.
cudaError_t active_positions(const uint8_t* mask, int64_t samples, int64_t channels, int64_t most, int32_t* to,
                             cudaStream_t stream);

}  // namespace maskfuse::cuda
