// The inverse of a channel index, and sums of the channels that an index names more than once.
#pragma once

#include "channel_gather.h"

namespace maskfuse {

// The inverse of `index` [count], whose entries lie in [0, size): first[i] is the first position of i, or kNoChannel,
// and next[p] is the following position of the same entry, or kNoChannel. Returns whether an entry occurs twice.
bool invert_indices(const int32_t* index, int64_t count, int64_t size, int32_t* first, int32_t* next);

// For each active channel of a mask, its position among the first `most` of them; kNoChannel for the others.
void invert_mask(const uint8_t* mask, int64_t channels, int64_t most, int32_t* to);

// What the elements are when they are added. A complex number is two of its parts.
enum class Number { boolean, i8, i16, i32, i64, f32, f64, bf16, f16 };

// A copy whose maps name the first of several inputs, and the lists that name the others.
struct ChannelSum {
  ChannelCopy copy;
  Number number;
  int64_t parts;                // numbers in an element: 2 where it is complex
  const int32_t* next_sample;   // [input samples]; null: there are no others
  const int32_t* next_channel;  // [input channels], or one such list a sample, `next_rows` entries apart; never null
  int64_t next_rows;
};

// Sums units [begin, end): samples in the order of the index, and in each its channels in the order of the index, so
// that the bits do not depend on the division. Half types are added in float32 and rounded once; integers wrap.
void sum_channels(const ChannelSum& sum, int64_t begin, int64_t end);

}  // namespace maskfuse
