// Which kernel runs a masked convolution: the one with the least estimated time. See masked_linear_planner.h, whose
// counts it shares; here a lane is a line of 64 bytes that is staged or stored, and a value's time holds its place's
// too.
#pragma once

#include "masked_conv2d.h"
#include "masked_linear_planner.h"

namespace maskfuse {

// The full convolution that Kernel::library leaves to a library: the whole problem, or, where the mask is whole rows
// and columns, that of the channels with an active weight.
struct LibraryConv {
  bool compact;
  int64_t in, out;  // channels

  explicit LibraryConv(const MaskedConv& problem);
  // Where it is compact: whether an input or an output channel has an active weight, and where kernels have one.
  bool reads(int64_t channel) const { return exchanged() ? has_row(channel) : has_columns(channel); }
  bool writes(int64_t channel) const { return exchanged() ? has_columns(channel) : has_row(channel); }
  // Of channels that are: whether a tap is active; and whether all are.
  bool active(int64_t in_channel, int64_t out_channel, int64_t tap) const {
    return has_column(exchanged() ? out_channel : in_channel, tap);
  }
  bool all_taps() const;

 private:
  const MaskedConv& conv;
  bool exchanged() const { return conv.pass == Pass::input_grad; }
  bool has_row(int64_t channel) const;
  bool has_columns(int64_t channel) const;
  bool has_column(int64_t channel, int64_t tap) const;
};

// How Kernel::direct runs a problem, and its channels: `bits`, as many words as direct_words says, takes those with an
// active weight where the mask is whole rows and columns.
DirectSchedule direct_schedule(const MaskedConv& problem, Isa isa, int threads, uint32_t* bits);
GatheredConv direct_conv(const MaskedConv& problem, const DirectSchedule& schedule, const uint32_t* bits);
inline int64_t direct_words(const ConvShape& shape) { return (shape.in + 31) / 32 + (shape.out + 31) / 32; }

// All candidates, the chosen one first; returns their number, at most kMostCandidates.
int candidates(const MaskedConv& problem, Isa isa, int threads, Candidate* list);

// Makes every later choice fall on the named kernel where it is a candidate, for benchmarks and tests; "" undoes it.
// Returns false, and changes nothing, where there is no such kernel.
bool prefer_conv_kernel(const char* name);

// How the vector kernels cut a problem, in its forward form, that has a plan.
Strips strips_of(const MaskedConv& problem);

}  // namespace maskfuse
