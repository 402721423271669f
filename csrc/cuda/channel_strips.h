// How the output of a channel copy is divided among threads.
//
// The words of a plane (in planes: as wide as all addresses allow) or the elements of a channel (in channels_last: one
// a pixel) are cut into strips of equal length, and a thread takes the same place of each strip. So it looks its
// channel up once for several words, has them under way together, and the stores of a warp coalesce: neighbours are
// neighbouring places of a plane, or neighbouring channels of a pixel and then neighbouring pixels.
#pragma once

#include "channel_gather.h"
#include "divisor.h"
#include "machine.h"

namespace maskfuse::cuda {

inline constexpr int kLeastThreads = 128, kMostThreads = 512;  // of a block

// Threads of a launch, of which a large copy takes several: their numbers are 32 bits wide, and so are divisions.
inline constexpr int64_t kLaunchThreads = 1 << 30;

// Words of a channel, and channels, at most.
inline constexpr int64_t kMostWords = INT32_MAX;

// The most strips: enough bytes under way in a thread to hide the memory's latency.
template <int kBytes>
inline constexpr int kStrips = kBytes >= 8   ? 4
                               : kBytes == 4 ? 8
                                             : 16;

// In planes a strip is at least this long where it can be: what the memory's caches are read and written in.
inline constexpr int64_t kSectorBytes = 32;

struct ChannelStrips {
  int64_t threads;  // in all
  // The number of a thread is (sample, outer, inner): place and channel in channels_last, channel and place in planes.
  Divisor inner, outer;
  bool channels_last;
  uint32_t words, strip;          // of a channel, of a strip of it
  int64_t from_step, from_strip;  // bytes from word to word, from strip to strip
  int64_t to_sample, to_channel, to_step, to_strip;
  // Of a launch: its threads, and the number of the first one.
  uint32_t launch_threads, first_inner, first_outer;
  int64_t first_sample;
};

// The widest word of at most 16 bytes that every address of a copy in planes is a multiple of; else an element.
inline int word_bytes(const ChannelCopy& c) {
  if (c.channels_last) return (int)c.element;
  const uint64_t all = (uint64_t)(uintptr_t)c.from | (uint64_t)(uintptr_t)c.to | (uint64_t)c.from_sample |
                       (uint64_t)c.from_channel | (uint64_t)(c.pixels * c.element) | 16;
  return (int)(all & (~all + 1));
}

// Samples that follow each other like pixels, by one list, as one sample: its strips are longer.
inline ChannelCopy merged(ChannelCopy c, bool one_list) {
  const bool regular = c.pixels == 1 || c.from_sample == c.pixels * c.from_pixel;
  if (!c.channels_last || !one_list || !regular || c.samples > kMostWords / c.pixels) return c;
  if (c.pixels == 1) c.from_pixel = c.from_sample;
  c.pixels *= c.samples, c.samples = 1;
  return c;
}

// Threads of a block. In channels_last all channels of a pixel, so that one processor reads its row, in whatever order.
inline int block_threads(const ChannelCopy& c) {
  if (!c.channels_last || c.channels <= kLeastThreads) return kLeastThreads;
  return c.channels < kMostThreads ? (int)ceil_div(c.channels, kWarp) * kWarp : kMostThreads;
}

// Whether the copy, which is not empty, can be divided.
inline bool channel_strips(const ChannelCopy& c, int bytes, int most_strips, ChannelStrips* result) {
  const int64_t words = c.channels_last ? c.pixels : c.pixels * c.element / bytes;
  if (words > kMostWords || c.channels > kMostWords) return false;
  int64_t strips = c.channels_last ? words : words * bytes / kSectorBytes;
  strips = strips < 1 ? 1 : strips < most_strips ? strips : most_strips;
  ChannelStrips s{};
  s.words = (uint32_t)words, s.strip = (uint32_t)ceil_div(words, strips), s.channels_last = c.channels_last;
  s.threads = c.samples * c.channels * s.strip;
  s.inner = Divisor(c.channels_last ? (uint32_t)c.channels : s.strip);
  s.outer = Divisor(c.channels_last ? s.strip : (uint32_t)c.channels);
  s.from_step = c.channels_last ? c.from_pixel : bytes, s.to_step = c.channels_last ? c.channels * bytes : bytes;
  s.to_sample = c.channels * c.pixels * c.element, s.to_channel = c.channels_last ? bytes : c.pixels * c.element;
  s.from_strip = s.strip * s.from_step, s.to_strip = s.strip * s.to_step;
  *result = s;
  return true;
}

inline void begin_launch(ChannelStrips* s, int64_t first) {
  const int64_t left = s->threads - first, unit = first / s->inner.value;
  s->launch_threads = (uint32_t)(left < kLaunchThreads ? left : kLaunchThreads);
  s->first_inner = (uint32_t)(first % s->inner.value), s->first_outer = (uint32_t)(unit % s->outer.value);
  s->first_sample = unit / s->outer.value;
}

// Runs kernel(operand, strips, lists...) for all of a copy.
template <class Operand, class... Lists>
cudaError_t launch_strips(void (*kernel)(Operand, ChannelStrips, Lists...), const Operand& operand,
                          const ChannelCopy& copy, int word_bytes, int most_strips, cudaStream_t stream,
                          const Lists&... lists) {
  ChannelStrips strips;
  if (!channel_strips(copy, word_bytes, most_strips, &strips)) return cudaErrorInvalidValue;
  const int threads = block_threads(copy);
  for (int64_t first = 0; first < strips.threads; first += kLaunchThreads) {
    begin_launch(&strips, first);
    const dim3 grid((unsigned)ceil_div(strips.launch_threads, threads));
    const cudaError_t error = launch(kernel, grid, threads, 0, stream, operand, strips, lists...);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// What a thread writes: words [place], [place + strip], ... of a channel.
struct ChannelPlace {
  int32_t sample, channel;
  uint32_t word;
};

__device__ __forceinline__ ChannelPlace channel_place(const ChannelStrips& s, uint32_t thread) {
  const uint32_t inner = s.first_inner + thread, units = s.inner.quotient(inner),
                 in_unit = inner - units * s.inner.value;
  const uint32_t outer = s.first_outer + units, samples = s.outer.quotient(outer);
  const uint32_t in_sample = outer - samples * s.outer.value;
  return {(int32_t)(s.first_sample + samples), (int32_t)(s.channels_last ? in_unit : in_sample),
          s.channels_last ? in_sample : in_unit};
}

__device__ __forceinline__ char* output(const ChannelStrips& s, char* to, const ChannelPlace& place) {
  return to + place.sample * s.to_sample + place.channel * s.to_channel + place.word * s.to_step;
}

}  // namespace maskfuse::cuda
