// Two loops: over planes, and over rows of single elements.
#include "channel_gather.h"

#include <algorithm>
#include <cstring>

#include "channel_gather_pixels.h"
#include "channel_gather_planes.h"

namespace maskfuse {
namespace {

template <class Index>
int64_t resolve(const Index* index, int64_t count, int64_t size, int32_t* to) {
  bool outside = false;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = index[i] < 0 ? index[i] + size : index[i];
    outside |= (uint64_t)value >= (uint64_t)size;
    to[i] = (int32_t)value;
  }
  if (!outside) return -1;
  for (int64_t i = 0;; ++i)
    if (index[i] < -size || index[i] >= size) return i;
}

}  // namespace

int64_t copy_units(const ChannelCopy& c) { return c.samples * (c.channels_last ? c.pixels : c.channels); }

int64_t copy_unit_bytes(const ChannelCopy& c) { return c.element * (c.channels_last ? c.channels : c.pixels); }

void copy_channels(const ChannelCopy& c, int64_t begin, int64_t end) {
  if (c.channels_last)
    copy_in_pixels(c, begin, end);
  else
    copy_in_planes(c, begin, end);
}

void copy_channels_naive(const ChannelCopy& c, int64_t begin, int64_t end) {
  const int64_t inner = c.channels_last ? c.channels : c.pixels;
  for (int64_t unit = begin; unit < end; ++unit) {
    for (int64_t i = 0; i < inner; ++i) {
      const int64_t outer = c.channels_last ? c.pixels : c.channels;
      const int64_t output = unit / outer;
      const int64_t channel = c.channels_last ? i : unit % outer, pixel = c.channels_last ? unit % outer : i;
      const int64_t input = input_sample(c, output);
      const int64_t from = input < 0 ? kNoChannel : list_of(c, output, input)[channel];
      char* const to = c.to + (unit * inner + i) * c.element;
      if (from < 0)
        std::memset(to, 0, (size_t)c.element);
      else
        std::memcpy(to, c.from + input * c.from_sample + from * c.from_channel + pixel * c.from_pixel,
                    (size_t)c.element);
    }
  }
}

int64_t resolve_indices(const int32_t* index, int64_t count, int64_t size, int32_t* to) {
  return resolve(index, count, size, to);
}
int64_t resolve_indices(const int64_t* index, int64_t count, int64_t size, int32_t* to) {
  return resolve(index, count, size, to);
}

void active_channels(const uint8_t* mask, int64_t channels, int64_t most, int32_t* to) {
  // Without a branch on the mask, which a random one mispredicts: the next entry is written and, if inactive, written
  // again.
  int64_t count = 0;
  for (int64_t c = 0; c < channels && count < most; ++c) {
    to[count] = (int32_t)c;
    count += mask[c] != 0;
  }
  std::fill(to + count, to + most, kNoChannel);
}

}  // namespace maskfuse
