// A thread reads all its words before it writes the first. Bound by the bytes moved.
#include "channel_entry.h"
#include "channel_gather.h"
#include "channel_strips.h"
#include "number.h"

namespace maskfuse::cuda {
namespace {

// Word: as wide as what is moved at a time.
template <class Word>
__global__ void __launch_bounds__(kMostThreads)
    copy_kernel(ChannelCopy c, ChannelStrips strips, ChannelList channels, ChannelList samples) {
  constexpr int kTogether = kStrips<sizeof(Word)>;
  const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= strips.launch_threads) return;
  const ChannelPlace place = channel_place(strips, thread);
  const int32_t sample = samples.entries ? listed(samples, place.sample) : place.sample;
  const int64_t row = c.rows_of_input ? sample : place.sample;
  const int32_t channel = sample < 0 ? kNoChannel : listed(channels, row * c.rows + place.channel);
  const char* from = c.from + sample * c.from_sample + channel * c.from_channel + place.word * strips.from_step;
  char* to = output(strips, c.to, place);
  Word value[kTogether];
#pragma unroll
  for (int k = 0; k < kTogether; ++k, from += strips.from_strip)
    value[k] = channel >= 0 && place.word + k * strips.strip < strips.words ? *(const Word*)from : Word{};
#pragma unroll
  for (int k = 0; k < kTogether; ++k, to += strips.to_strip)
    if (place.word + k * strips.strip < strips.words) *(Word*)to = value[k];
}

template <class Word>
cudaError_t run(const ChannelCopy& copy, const ChannelList& channels, const ChannelList& samples, cudaStream_t stream) {
  return launch_strips(copy_kernel<Word>, copy, copy, sizeof(Word), kStrips<sizeof(Word)>, stream, channels, samples);
}

}  // namespace

cudaError_t channel_gather(const ChannelCopy& all, const ChannelList& channels, const ChannelList& samples,
                           cudaStream_t stream) {
  if (all.samples == 0 || all.channels == 0 || all.pixels == 0) return cudaSuccess;
  const ChannelCopy copy = merged(all, !samples.entries && all.rows == 0);
  switch (word_bytes(copy)) {
    case 1:
      return run<uint8_t>(copy, channels, samples, stream);
    case 2:
      return run<uint16_t>(copy, channels, samples, stream);
    case 4:
      return run<uint32_t>(copy, channels, samples, stream);
    case 8:
      return run<uint64_t>(copy, channels, samples, stream);
    default:
      return run<Piece>(copy, channels, samples, stream);
  }
}

}  // namespace maskfuse::cuda
