// Step 1 finds, for a run of outputs of one sample, the list that names their inputs; step 2 copies the run with a
// loop made for the size of what it copies: single elements, planes of a few vectors, planes of many.
#include "channel_gather.h"

#include <algorithm>
#include <cstring>

namespace maskfuse {
namespace {

// Above this many bytes the C library's copy is worth its call: it knows the machine's widest loads.
constexpr int64_t kLongCopy = 1024;

// Sixteen bytes and more, the last vector overlapping the one before.
inline void copy_short(char* to, const char* from, int64_t bytes) {
  int64_t i = 0;
  for (; i + 64 <= bytes; i += 64) __builtin_memcpy(to + i, from + i, 64);
  for (; i + 16 <= bytes; i += 16) __builtin_memcpy(to + i, from + i, 16);
  if (i < bytes) __builtin_memcpy(to + bytes - 16, from + bytes - 16, 16);
}

inline void zero_short(char* to, int64_t bytes) {
  constexpr char kZero[64] = {};
  int64_t i = 0;
  for (; i + 64 <= bytes; i += 64) __builtin_memcpy(to + i, kZero, 64);
  for (; i + 16 <= bytes; i += 16) __builtin_memcpy(to + i, kZero, 16);
  if (i < bytes) __builtin_memcpy(to + bytes - 16, kZero, 16);
}

inline void copy_bytes(char* to, const char* from, int64_t bytes) {
  if (bytes < kLongCopy)
    copy_short(to, from, bytes);
  else
    std::memcpy(to, from, (size_t)bytes);
}

inline void zero_bytes(char* to, int64_t bytes) {
  if (bytes < kLongCopy)
    zero_short(to, bytes);
  else
    std::memset(to, 0, (size_t)bytes);
}

// One sample's outputs: `count` of `bytes` each, consecutive in `to`; output i is the input at from + list[i] * stride.
using CopyList = void (*)(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count,
                          int64_t bytes);

// T: as large as one output, which need not be aligned. No branch where some outputs are zero: what is not taken is
// read from the first input.
template <class T>
void copy_elements(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count, int64_t) {
  const auto copy = [&](int64_t stride) {
    for (int64_t i = 0; i < count; ++i) {
      T value;
      __builtin_memcpy(&value, from + (list[i] < 0 ? 0 : list[i] * stride), sizeof(T));
      if (list[i] < 0) value = T{};
      __builtin_memcpy(to + i * sizeof(T), &value, sizeof(T));
    }
  };
  if (stride == sizeof(T))
    copy(sizeof(T));
  else
    copy(stride);
}

// kPart: half of `bytes` or more, so that two of them cover it.
template <int64_t kPart>
void copy_pieces(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count, int64_t bytes) {
  constexpr char kZero[16] = {};
  for (int64_t i = 0; i < count; ++i, to += bytes) {
    const char* const piece = list[i] < 0 ? kZero : from + list[i] * stride;
    __builtin_memcpy(to, piece, kPart);
    __builtin_memcpy(to + bytes - kPart, piece + bytes - kPart, kPart);
  }
}

// Sixteen bytes and more; inputs that follow each other are one copy.
void copy_planes(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count, int64_t bytes) {
  const bool dense = stride == bytes;
  for (int64_t i = 0, run; i < count; i += run, to += run * bytes) {
    run = 1;
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

CopyList copy_list_for(int64_t bytes) {
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

const int32_t* list_of(const ChannelCopy& c, int64_t output, int64_t input) {
  return c.channel + (c.rows_of_input ? input : output) * c.rows;
}

int64_t input_sample(const ChannelCopy& c, int64_t output) { return c.sample ? c.sample[output] : output; }

void copy_in_planes(const ChannelCopy& c, int64_t begin, int64_t end) {
  const int64_t bytes = c.pixels * c.element;
  const CopyList copy = copy_list_for(bytes);
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

void copy_in_pixels(const ChannelCopy& c, int64_t begin, int64_t end) {
  const CopyList copy = copy_list_for(c.element);
  const int64_t bytes = c.channels * c.element;
  for (int64_t unit = begin; unit < end;) {
    const int64_t output = unit / c.pixels, pixel = unit % c.pixels;
    const int64_t count = std::min(c.pixels - pixel, end - unit), input = input_sample(c, output);
    char* to = c.to + unit * bytes;
    unit += count;
    if (input < 0) {
      std::memset(to, 0, (size_t)(count * bytes));
      continue;
    }
    const int32_t* const list = list_of(c, output, input);
    const char* from = c.from + input * c.from_sample + pixel * c.from_pixel;
    for (int64_t p = 0; p < count; ++p, to += bytes, from += c.from_pixel)
      copy(to, from, c.from_channel, list, c.channels, c.element);
  }
}

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
  int64_t count = 0;
  for (int64_t c = 0; c < channels && count < most; ++c)
    if (mask[c]) to[count++] = (int32_t)c;
  std::fill(to + count, to + most, kNoChannel);
}

}  // namespace maskfuse
