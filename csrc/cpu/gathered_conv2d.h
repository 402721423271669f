// Convolutions of some channels of each image, behind gathered_conv2d, on raw pointers.
//
// With G[n] the channels that are chosen for image n:
//
//   forward      Y[n,o,y,x]  = bias[o] + sum over c in G[n] and taps of W[o,c,dy,dx] X[n, c, ...]
//   input_grad   dX[n,c,...], its adjoint, of dY for c in G[n]; zero for others
//
// The weight is read where it lies, and of the input only what is chosen: nothing is gathered, copied or scattered.
// Lanes are those of masked_conv2d_strip.h, of one image at a time.
#pragma once

#include "isa.h"
#include "masked_conv2d.h"

namespace maskfuse {

struct GatheredConv {
  MaskedConv conv;  // forward or input_grad, of a weight without a mask: its bits and plan are null; groups is 1
  const uint32_t* channels;
  int64_t channels_ld;  // [batch][words], one bit an input channel
};

struct GatheredSchedule {
  Strips strips;     // of one image
  int64_t parts;     // tasks an image
  int64_t most;      // channels staged at once
  int64_t together;  // strips that a chunk of the weight is read for, at most kMostTogether
  // scratch: the staged row of each dy; of each staged channel's taps the line, and the place in the weight; the rows
  // of the result; lines of the input, and of the output; where lanes are.
  // Outputs and maps are one for each strip of those together.
  size_t first_at, lines_at, places_at, rows_at, input_at, output_at, map_at, output_bytes, map_bytes, scratch_bytes;
};

// Channels are taken in groups of this many, as many as a vector's.
inline constexpr int64_t kChannelGroup = 16;
inline constexpr int64_t kMostTogether = 16;

GatheredSchedule schedule(const GatheredConv& problem, int threads);

// Runs task `index` of batch * parts; they write nothing in common.
using GatheredTask = void (*)(const GatheredConv&, const GatheredSchedule&, int64_t index, void* scratch);

// Null where an instruction set has no kernel: the convolution of an input with zeros is what is left.
GatheredTask gathered_conv2d_task(Isa isa, Dtype dtype);
GatheredTask gathered_conv2d_task_avx2(Dtype dtype);
GatheredTask gathered_conv2d_task_avx512(Dtype dtype);

}  // namespace maskfuse
