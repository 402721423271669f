// Planes, copied whole, by a loop made for their size. Included by channel_gather.cpp only.
#pragma once

#include <algorithm>
#include <cstring>

#include "channel_gather_pieces.h"

namespace maskfuse {
namespace {

// From this many bytes on the C library's copy, which knows the machine's vectors, is worth its call.
constexpr int64_t kLongCopy = 128;

// Planes up to this long are over before the hardware's prefetcher has found them: the one kAhead further is asked for.
constexpr int64_t kShortPlane = 1024, kAhead = 8, kLine = 64;

// Sixteen bytes and more, the last vector overlapping the one before.
inline void copy_bytes(char* to, const char* from, int64_t bytes) {
  if (bytes >= kLongCopy) {
    std::memcpy(to, from, (size_t)bytes);
    return;
  }
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16) __builtin_memcpy(to + i, from + i, 16);
  if (i < bytes) __builtin_memcpy(to + bytes - 16, from + bytes - 16, 16);
}

inline void zero_bytes(char* to, int64_t bytes) {
  if (bytes >= kLongCopy) {
    std::memset(to, 0, (size_t)bytes);
    return;
  }
  constexpr char kZero[16] = {};
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16) __builtin_memcpy(to + i, kZero, 16);
  if (i < bytes) __builtin_memcpy(to + bytes - 16, kZero, 16);
}

inline void prefetch(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(from + i);
  __builtin_prefetch(from + bytes - 1);
}

// One sample's planes: `count` of `bytes` each, consecutive in `to`; plane i is the input at from + list[i] * stride.
using CopyPlanes = void (*)(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count,
                            int64_t bytes);

// Sixteen bytes and more; inputs that follow each other are one copy.
void copy_planes(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count, int64_t bytes) {
  const bool dense = stride == bytes, is_short = bytes <= kShortPlane;
  for (int64_t i = 0, run; i < count; i += run, to += run * bytes) {
    run = 1;
    if (is_short && i + kAhead < count && list[i + kAhead] >= 0) prefetch(from + list[i + kAhead] * stride, bytes);
    if (list[i] < 0) {
      while (i + run < count && list[i + run] < 0) ++run;
      zero_bytes(to, run * bytes);
    } else {
      if (dense)
        while (i + run < count && list[i + run] == list[i] + run) ++run;
      copy_bytes(to, from + list[i] * stride, run * bytes);
    }
  }
}

CopyPlanes planes_of(int64_t bytes) {
  switch (bytes) {
    case 1:
      return copy_elements<uint8_t>;
    case 2:
      return copy_elements<uint16_t>;
    case 4:
      return copy_elements<uint32_t>;
    case 8:
      return copy_elements<uint64_t>;
    case 3:
      return copy_pieces<2>;
    default:
      return bytes < 8 ? copy_pieces<4> : bytes <= 16 ? copy_pieces<8> : copy_planes;
  }
}

void copy_in_planes(const ChannelCopy& c, int64_t begin, int64_t end) {
  const int64_t bytes = c.pixels * c.element;
  const CopyPlanes copy = planes_of(bytes);
  for (int64_t unit = begin; unit < end;) {
    const int64_t output = unit / c.channels, channel = unit % c.channels;
    const int64_t count = std::min(c.channels - channel, end - unit), input = input_sample(c, output);
    char* const to = c.to + unit * bytes;
    if (input < 0)
      std::memset(to, 0, (size_t)(count * bytes));
    else
      copy(to, c.from + input * c.from_sample, c.from_channel, list_of(c, output, input) + channel, count, bytes);
    unit += count;
  }
}

}  // namespace
}  // namespace maskfuse
