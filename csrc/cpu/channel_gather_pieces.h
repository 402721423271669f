// What both of channel_gather's loops need: a sample's list, and copies of what is at most sixteen bytes long. Included
// by channel_gather.cpp only.
#pragma once

#include "channel_gather.h"

namespace maskfuse {
namespace {

const int32_t* list_of(const ChannelCopy& c, int64_t output, int64_t input) {
  return c.channel + (c.rows_of_input ? input : output) * c.rows;
}

int64_t input_sample(const ChannelCopy& c, int64_t output) { return c.sample ? c.sample[output] : output; }

// T: as large as one output, which need not be aligned. Without a branch, which random lists would mispredict: what is
// not taken is read from the first input and masked.
template <class T>
void copy_elements(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count, int64_t) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t taken = ~((int64_t)list[i] >> 63);
    T value;
    __builtin_memcpy(&value, from + (list[i] & taken) * stride, sizeof(T));
    value &= (T)taken;
    __builtin_memcpy(to + i * sizeof(T), &value, sizeof(T));
  }
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

}  // namespace
}  // namespace maskfuse
