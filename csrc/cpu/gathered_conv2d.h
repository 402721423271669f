// Direct convolutions of chosen channels, behind gathered_conv2d and channel masks of masked_conv2d, on raw pointers.
//
// With G[n] the input channels chosen for image n, and H[n] the output channels:
//
//   forward      Y[n,o,y,x]   = bias[o] + sum over c in G[n] and taps of W[o,c,dy,dx] X[n, c, ...] for o in H[n],
//                               bias[o] for others
//   input_grad   dX[n,c,...], its adjoint, of dY[n,o,...] for o in H[n], for c in G[n]; zero for others
//   weight_grad  dW[o,c,dy,dx] = sum over images that chose both, and pixels; zero where there is none
//
// Of the activations only what is chosen is read, where it lies; results are written in place, once.
//
// Lanes are channels of the result, 16 floats or 8 doubles: a block. Pixels are taken one at a time and multiply whole
// blocks, so that no lane is lost to the borders of an image. A tile is some pixels of one image:
//
//   weights   [block][summed channel][tap][lane]  put in lanes once a call
//   input     [summed channel][row][column]       staged for a tile, with zeros outside the image
//             [row][column][summed channel]       or so, where the image's channels lie side by side
//   sums      [block][pixel][lane]
//
// Lanes of weight_grad are output channels: its gradient is staged as [block][pixel][lane], its input as above, and
// sums are [block][input channel][tap][lane].
#pragma once

#include "conv2d.h"
#include "isa.h"

namespace maskfuse {

struct GatheredConv {
  MaskedConv conv;  // its plan is null; its bits, those of a mask of the weight, may be; groups is 1
  // Chosen channels: one bit a channel, [batch][ld], or the same for all images where ld is 0, as out_ld must be for
  // weight_grad; null for all channels.
  const uint32_t *in_channels, *out_channels;
  int64_t in_ld, out_ld;
};

// How an image is cut, in the forward form of the problem.
struct Tiling {
  int64_t rows, columns;                // output pixels of a tile
  int64_t down, across;                 // tiles
  int64_t staged_rows, staged_columns;  // what a tile reads

  int64_t tiles() const { return down * across; }
  int64_t pixels() const { return rows * columns; }
  int64_t positions() const { return staged_rows * staged_columns; }
};

struct GatheredSchedule {
  Tiling tiling;
  int64_t tasks[2];           // of each phase
  int64_t chunk;              // channels staged at once
  int64_t plane;              // elements from staged channel to staged channel
  bool shared_lanes;          // weights are put in lanes by the first phase, not by each task for its image
  int64_t lanes, out_blocks;  // of a block, and how many
  int64_t slices, slots;      // weight_grad: tiles are summed in slices; input channels that have sums
  size_t lanes_at, sums_at, shared_bytes;
  // scratch: as above, and lists of channels, and where a tile's pixels are.
  size_t lists_at, places_at, next_places_at, own_lanes_at, input_at, own_sums_at, fill_at, scratch_bytes;
};

// Columns of the weight, channels x taps, that are summed at once: two blocks of them fit half of the first-level
// cache.
inline constexpr int64_t kColumns = 144;
// Those that a task of weight_grad stages: enough for the gradient to be staged seldom.
inline constexpr int64_t kGradColumns = 576;
// Blocks of output channels whose sums weight_grad has in registers.
inline constexpr int kGradBlocks = 3;

// A phase has tasks that write nothing in common.
using GatheredTask = void (*)(const GatheredConv&, const GatheredSchedule&, int64_t index, void* shared, void* scratch);

struct GatheredTasks {
  GatheredTask phases[2];
};

GatheredSchedule schedule(const GatheredConv& problem, Isa isa, int threads);

// Whether a problem has tiles that a thread may work on: dilations may reach over more pixels than are worth staging.
inline constexpr size_t kMostScratch = size_t{4} << 20;
inline bool fits(const GatheredSchedule& s) { return s.scratch_bytes <= kMostScratch; }

// The forward form, in which the pixels of a convolution by single pixels are one row where they lie in one.
MaskedConv gathered_form(const GatheredConv& problem);

// Null where an instruction set has no kernel: the convolution of an input with zeros is what is left.
GatheredTasks gathered_conv2d_tasks(Isa isa, Dtype dtype, Pass pass);
GatheredTasks gathered_conv2d_tasks_avx2(Dtype dtype, Pass pass);
GatheredTasks gathered_conv2d_tasks_avx512(Dtype dtype, Pass pass);

}  // namespace maskfuse
