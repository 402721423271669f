// Channels of a pixel in AVX2: elements of four bytes, as floats. Others are as fast one by one.
#include "vec_avx2.h"
//
#include "channel_gather_lanes.h"

namespace maskfuse {

ChannelSteps channel_steps_avx2(int64_t element) { return element == 4 ? steps_of<F32x8>() : ChannelSteps{}; }

}  // namespace maskfuse
