// A warp makes the list of a sample: 32 channels at a time, a ballot says how many are active before each.
#include "../cpu/channel_gather.h"
#include "channel_select.h"
#include "machine.h"

namespace maskfuse::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kAhead = 4;  // reads under way, of 32 channels each

// kPositions: the position of each channel is written, else the channel at each position.
template <bool kPositions>
__global__ void __launch_bounds__(kThreads) list_kernel(const uint8_t* __restrict__ mask, int64_t samples,
                                                        int64_t channels, int64_t most, int32_t* __restrict__ to) {
  const int lane = lane_index();
  for (int64_t sample = (int64_t)blockIdx.x * kWarps + warp_index(); sample < samples;
       sample += (int64_t)gridDim.x * kWarps) {
    const uint8_t* const row = mask + sample * channels;
    int32_t* const list = to + sample * (kPositions ? channels : most);
    int64_t count = 0;
    for (int64_t base = lane; base - lane < channels; base += kAhead * kWarp) {
      bool active[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) active[k] = base + k * kWarp < channels && row[base + k * kWarp] != 0;
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const uint32_t bits = ballot(active[k]);
        const int64_t channel = base + k * kWarp, position = count + count_set(bits & ((1u << lane) - 1));
        const bool taken = active[k] && position < most;
        if (kPositions && channel < channels) list[channel] = taken ? (int32_t)position : kNoChannel;
        if (!kPositions && taken) list[position] = (int32_t)channel;
        count += count_set(bits);
      }
    }
    if (!kPositions)
      for (int64_t i = count + lane; i < most; i += kWarp) list[i] = kNoChannel;
  }
}

}  // namespace

cudaError_t active_channels(const uint8_t* mask, int64_t samples, int64_t channels, int64_t most, int32_t* to,
                            cudaStream_t stream) {
  return launch(list_kernel<false>, grid_blocks(samples, kWarps), kThreads, 0, stream, mask, samples, channels, most,
                to);
}

cudaError_t active_positions(const uint8_t* mask, int64_t samples, int64_t channels, int64_t most, int32_t* to,
                             cudaStream_t stream) {
  return launch(list_kernel<true>, grid_blocks(samples, kWarps), kThreads, 0, stream, mask, samples, channels, most,
                to);
}

}  // namespace maskfuse::cuda
