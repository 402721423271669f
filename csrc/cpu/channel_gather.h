// Copies channels of activations: every plane of the output is one plane of the input, or zero.
//
// An activation is [samples, channels, pixels] in one of two layouts: in planes (NCHW: the pixels of a channel are
// consecutive) or channels_last (the channels of a pixel are consecutive). The output is dense; the input has any
// distance between samples and between channels, and in channels_last between pixels.
//
// Gather, scatter and select are this copy with different maps from outputs to inputs: a scatter's is the inverse of
// its index, so that each output is written once, zeros included.
#pragma once

#include <stdint.h>

namespace maskfuse {

// An entry of a map that has no input: its output is zero.
inline constexpr int32_t kNoChannel = -1;

struct ChannelCopy {
  int64_t samples, channels, pixels;  // of the output
  int64_t element;                    // bytes: 1, 2, 4, 8 or 16
  bool channels_last;                 // the better choice for one pixel, too, where both are the same

  const char* from;  // has a channel, unless every sample's entry is kNoChannel
  int64_t from_channels;
  int64_t from_sample, from_channel, from_pixel;  // distances in bytes; in planes, from_pixel is `element`
  char* to;

  // Input sample of each output sample; null: its own number.
  const int32_t* sample;
  // Input channel of each output channel: one list for all samples (rows == 0), or one a sample, `rows` entries apart.
  const int32_t* channel;
  int64_t rows;
  // A sample's list is that of the input sample, as in a scatter, or that of the output sample.
  bool rows_of_input;
};

// A unit of work is a plane of the output, or in channels_last all channels of one pixel.
int64_t copy_units(const ChannelCopy& copy);

// Bytes that a unit writes.
int64_t copy_unit_bytes(const ChannelCopy& copy);

// Copies units [begin, end). Any division into ranges writes the same bytes.
void copy_channels(const ChannelCopy& copy, int64_t begin, int64_t end);

// The same, element by element: what is computed, and what the fast one is tested against.
void copy_channels_naive(const ChannelCopy& copy, int64_t begin, int64_t end);

// Indices of an axis of `size` entries, counted from its end where they are negative, as numbers in [0, size).
// Returns the position of the first one out of range, or -1.
int64_t resolve_indices(const int32_t* index, int64_t count, int64_t size, int32_t* to);
int64_t resolve_indices(const int64_t* index, int64_t count, int64_t size, int32_t* to);

// The positions of the bytes that are not 0, in rising order, at most `most`; kNoChannel in the rest of `to`.
void active_channels(const uint8_t* mask, int64_t channels, int64_t most, int32_t* to);

}  // namespace maskfuse
