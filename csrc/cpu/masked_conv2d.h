// Masked convolutions behind masked_conv2d, on raw pointers: conv2d.h says what is computed.
//
// The weight is a matrix of `out` rows and in / groups * kernel_h * kernel_w columns, as its mask's plan has it
// (masked_linear_plan.h); that of input_grad is of the matrix with channels exchanged, in / groups rows and
// out * kernel_h * kernel_w columns. Images have any strides.
//
// As in masked_linear.h a problem is cut into tasks that write nothing in common, in phases.
#pragma once

#include <vector>

#include "gathered_conv2d.h"

namespace maskfuse {

// How the vector kernels cut output pixels into lanes: see masked_conv2d_strip.h.
struct Strips {
  bool pointwise;       // one tap: rows of a strip are pixels one after another, whatever image row they are in
  int64_t unit;         // lanes
  int64_t across;       // strips side by side
  int64_t rows, parts;  // output rows a strip; strips below one another
  int64_t staged_rows;  // lines a copy: the input rows that a strip's output rows read
  int64_t copies;       // of the input, one a dx
  int64_t plane;        // lines a channel: copies * staged_rows, made odd for the cache's sake
  int64_t out_plane;    // lines a channel of a strip of the output, likewise

  int64_t strips() const { return across * parts; }
};

// Kernel::shifted: dx, units of lanes side by side in a strip, output rows below one another.
inline constexpr int kShifts = 3;
inline constexpr int64_t kShiftedUnits = 2, kShiftedRows = 2;

// Which lanes its strips have, and which channels are in lanes at a time: see masked_conv2d_shifted.h.
struct ShiftedLanes {
  int64_t pitch;           // places from image to image
  int64_t before, useful;  // lanes before those of the output that a strip computes, and those
  int64_t channel;         // elements of one in lanes
  int64_t chunk, chunks;   // channels; how often

  int64_t lists(const ConvShape& shape) const { return chunks * shape.out * kShifts; }
};

// A column of the weight in lists: which list, in the first row, and where its line is, in elements.
struct ListColumn {
  uint32_t list, offset;
};

// Rows of a panel of the plan that have no entry in the first chunk, and in the last.
struct PassedRows {
  int16_t count[2];
  uint8_t rows[2][256];
};

// Of where a lane is in an image, by masked_conv2d_strip.h's LaneMap.
inline constexpr int64_t kLaneMapBytes = 40;

struct ConvSchedule;

// Half-open ranges of what a phase's tasks count, and where they may work.
struct ConvPart {
  const ConvSchedule* schedule;
  int64_t m0, m1, n0, n1;
  void* shared;
  void* scratch;
};

using ConvTask = void (*)(const MaskedConv&, const ConvPart&);

// How gathered_conv2d.h's kernel runs a problem: on all channels, or on those with an active weight; with the mask's
// zeros put in, or where there are none.
struct DirectSchedule {
  GatheredSchedule gathered;
  bool masked;
  std::vector<uint32_t> in_channels, out_channels;  // bits; empty for all
};

// Strips of a slice of weight_grad are summed one after another, slices after that: as many slices whatever the number
// of threads, for sums to be the same.
inline constexpr int64_t kMostSlices = 8;

struct MaskedConvKernels {
  // [dtype]
  ConvTask values[2][4];                            // forward, input_grad: first phase; n panels
  ConvTask accumulate[4];                           // forward, input_grad: m strips, n panels
  ConvTask list_lengths[4], list_bounds, lists[4];  // shifted, first phases: n channels of the output
  ConvTask shifted[4];                              // m strips, n channels of the output
  ConvTask offsets;                                 // weight_grad, first phase: n panels
  ConvTask sampled[4];                              // m slices, n panels
  ConvTask reduced[4];                              // n panels
  int32_t vector_bytes;
};

struct ConvPhase {
  ConvTask task;
  Grid grid;
};

// Bytes from the start of `shared`, and of `scratch`: where each part begins.
struct ConvSchedule {
  Kernel kernel;
  Isa isa;
  Strips strips;
  ShiftedLanes shifted;
  ConvPhase phases[4];
  int64_t phase_count;
  int64_t slices;
  // shared: the staged row of each dy, the line of each of the weight's columns in a strip, offsets of the plan's
  // columns, values, partial sums, rows without entries; of lists, the weight's columns and where they begin.
  size_t first_at, lines_at, passed_at, columns_at, bounds_at, offsets_at, values_at, sums_at, shared_bytes;
  // scratch: of a strip, a chunk of the input, the output, and where lanes are.
  size_t input_at, output_at, map_at, scratch_bytes;
  DirectSchedule direct;
};

// Chooses the kernel and cuts the problem. Where the choice is `library` there are no phases.
ConvSchedule schedule(const MaskedConv& problem, Isa isa, int threads);

// What must be done before the first phase: fills the part of `shared` that every task reads.
void prepare(const MaskedConv& problem, const ConvSchedule& schedule, void* shared);

// After the last phase: false where more bits are set than the plan has, another mask's, and nothing was computed.
bool plan_fits(const MaskedConv& problem, const ConvSchedule& schedule, const void* shared);

void run_task(const MaskedConv& problem, const ConvSchedule& schedule, int phase, int64_t index, void* shared,
              void* scratch);

const MaskedConvKernels* masked_conv2d_kernels_avx2();
const MaskedConvKernels* masked_conv2d_kernels_avx512();
const MaskedConvKernels* masked_conv2d_kernels(Isa isa);
// The readable version, every pass and any number of groups: m images and n channels of the result, or n rows of the
// weight's gradient.
ConvTask masked_conv2d_naive(const MaskedConv& problem);

}  // namespace maskfuse
