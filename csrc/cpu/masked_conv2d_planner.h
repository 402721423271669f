// Which kernel runs a masked convolution: the one with the least estimated time. See masked_linear_planner.h, whose
// counts it shares; here a lane is a line of 64 bytes that is staged or stored, and a value's time holds its place's
// too.
#pragma once

#include "masked_conv2d.h"
#include "masked_linear_planner.h"

namespace maskfuse {

// The full convolution that Kernel::library leaves to a library: the whole problem, or, where the mask is whole rows
// and columns, that of the channels with an active weight. Patterns are those of the plan, by rows of the weight and
// columns.
struct LibraryConv {
  bool compact;
  int64_t in, out;  // channels
  const uint32_t *out_pattern, *column_pattern;

  explicit LibraryConv(const MaskedConv& problem);
  // Whether one of the input channel's weights is active.
  bool reads(int64_t channel, int64_t taps) const;
};

// All candidates, the chosen one first; returns their number, at most kMostCandidates.
int candidates(const MaskedConv& problem, Isa isa, int threads, Candidate* list);

// Makes every later choice fall on the named kernel where it is a candidate, for benchmarks and tests; "" undoes it.
// Returns false, and changes nothing, where there is no such kernel.
bool prefer_conv_kernel(const char* name);

// How the vector kernels cut a problem that has a plan.
Strips strips_of(const MaskedConv& problem, int threads);

}  // namespace maskfuse
