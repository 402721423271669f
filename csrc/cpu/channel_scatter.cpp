// The rare case of a scatter: an index that names a channel or a sample more than once, as in the gradient of a gather.
#include "channel_scatter.h"

#include <algorithm>
#include <cstring>

#include "half.h"

namespace maskfuse {

bool invert_indices(const int32_t* index, int64_t count, int64_t size, int32_t* first, int32_t* next) {
  std::fill(first, first + size, kNoChannel);
  bool repeated = false;
  // From the end, so that the first position of an entry is the one that stays in front.
  for (int64_t p = count - 1; p >= 0; --p) {
    int32_t& front = first[index[p]];
    repeated |= front >= 0;
    next[p] = front;
    front = (int32_t)p;
  }
  return repeated;
}

void invert_mask(const uint8_t* mask, int64_t channels, int64_t most, int32_t* to) {
  int32_t count = 0;
  // Without a branch on the mask, as in active_channels: 0 - 1 has all bits, and is kNoChannel.
  int64_t c = 0;
  for (; c < channels && count < most; ++c) {
    const int32_t active = mask[c] != 0;
    to[c] = count | (active - 1);
    count += active;
  }
  std::fill(to + c, to + channels, kNoChannel);
}

namespace {

// How a number is stored, and what a sum of it is kept in.
template <class Stored, class Sum>
struct Plain {
  using stored = Stored;
  using sum = Sum;
  static Sum load(Stored x) { return (Sum)x; }
  static void store(Sum x, Stored* to) { *to = (Stored)x; }
  static Sum add(Sum a, Sum b) { return (Sum)(a + b); }
};
struct Boolean : Plain<uint8_t, uint8_t> {
  static uint8_t load(uint8_t x) { return x != 0; }
  static uint8_t add(uint8_t a, uint8_t b) { return a | b; }
};
template <class Stored>
struct Half {
  using stored = Stored;
  using sum = float;
  static float load(Stored x) { return widen(x); }
  static void store(float x, Stored* to) { narrow(x, to); }
  static float add(float a, float b) { return a + b; }
};

// Calls source(address of the plane or pixel) for each input of one output channel, in the order of the index.
template <class Source>
void for_each_source(const ChannelSum& s, int64_t sample, int64_t channel, const Source& source) {
  const ChannelCopy& c = s.copy;
  for (int64_t in = c.sample ? c.sample[sample] : sample; in >= 0; in = s.next_sample ? s.next_sample[in] : -1)
    for (int64_t k = c.channel[in * c.rows + channel]; k >= 0; k = s.next_channel[in * s.next_rows + k])
      source(c.from + in * c.from_sample + k * c.from_channel);
}

// `count` numbers, consecutive in `to` and `offset` bytes into each source.
template <class T>
void sum_block(const ChannelSum& s, int64_t sample, int64_t channel, int64_t offset, typename T::stored* to,
               int64_t count, typename T::sum* total) {
  // The first is stored, not added to zero: a channel that occurs once is copied bit by bit.
  bool any = false;
  for_each_source(s, sample, channel, [&](const char* source) {
    const auto* const from = (const typename T::stored*)(source + offset);
    for (int64_t i = 0; i < count; ++i) {
      const auto value = T::load(from[i]);
      total[i] = any ? T::add(total[i], value) : value;
    }
    any = true;
  });
  if (!any) std::fill(total, total + count, typename T::sum{});
  for (int64_t i = 0; i < count; ++i) T::store(total[i], to + i);
}

template <class T>
void sum_numbers(const ChannelSum& s, int64_t begin, int64_t end) {
  using Stored = typename T::stored;
  constexpr int64_t kBlock = 512;
  typename T::sum total[kBlock];
  const ChannelCopy& c = s.copy;
  for (int64_t unit = begin; unit < end; ++unit) {
    if (c.channels_last) {
      const int64_t sample = unit / c.pixels, pixel = unit % c.pixels;
      auto* const to = (Stored*)c.to + unit * c.channels * s.parts;
      for (int64_t channel = 0; channel < c.channels; ++channel)
        sum_block<T>(s, sample, channel, pixel * c.from_pixel, to + channel * s.parts, s.parts, total);
    } else {
      const int64_t sample = unit / c.channels, channel = unit % c.channels, numbers = c.pixels * s.parts;
      auto* const to = (Stored*)c.to + unit * numbers;
      for (int64_t i = 0; i < numbers; i += kBlock)
        sum_block<T>(s, sample, channel, i * (int64_t)sizeof(Stored), to + i, std::min(kBlock, numbers - i), total);
    }
  }
}

}  // namespace

void sum_channels(const ChannelSum& s, int64_t begin, int64_t end) {
  switch (s.number) {
    case Number::boolean:
      return sum_numbers<Boolean>(s, begin, end);
    case Number::i8:
      return sum_numbers<Plain<uint8_t, uint8_t>>(s, begin, end);
    case Number::i16:
      return sum_numbers<Plain<uint16_t, uint16_t>>(s, begin, end);
    case Number::i32:
      return sum_numbers<Plain<uint32_t, uint32_t>>(s, begin, end);
    case Number::i64:
      return sum_numbers<Plain<uint64_t, uint64_t>>(s, begin, end);
    case Number::f32:
      return sum_numbers<Plain<float, float>>(s, begin, end);
    case Number::f64:
      return sum_numbers<Plain<double, double>>(s, begin, end);
    case Number::bf16:
      return sum_numbers<Half<Bf16>>(s, begin, end);
    case Number::f16:
      return sum_numbers<Half<Fp16>>(s, begin, end);
  }
}

}  // namespace maskfuse
