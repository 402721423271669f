// Which kernel runs a masked convolution: the one with the least estimated time. See masked_linear_planner.h, whose
// counts it shares; here a lane is a line of 64 bytes that is staged or stored, and a value's time holds its place's
// too.
#pragma once

#include <vector>

#include "masked_conv2d.h"
#include "masked_linear_planner.h"

namespace maskfuse {

// The channels with an active weight, where the mask is whole rows and columns: what Kernel::library and Kernel::direct
// compute of it. Else all channels.
struct ActiveChannels {
  bool some;                   // fewer than all, and their kernels are
  bool all_taps;               // active in all taps
  int64_t in, out;             // how many
  std::vector<uint32_t> bits;  // of the input's, then, a word begun, of the output's

  explicit ActiveChannels(const MaskedConv& problem);
  const uint32_t* in_bits() const { return bits.data(); }
  const uint32_t* out_bits() const { return bits.data() + words; }
  bool reads(int64_t channel) const { return in_bits()[channel / 32] >> (channel % 32) & 1; }
  bool writes(int64_t channel) const { return out_bits()[channel / 32] >> (channel % 32) & 1; }

 private:
  int64_t words;
};

// Whether the mask of an ActiveChannels that has not all taps has this one, between channels that are active.
bool tap_is_active(const MaskedConv& problem, int64_t in_channel, int64_t out_channel, int64_t tap);

// How Kernel::direct runs a problem.
DirectSchedule direct_schedule(const MaskedConv& problem, const ActiveChannels& active, Isa isa, int threads);
GatheredConv direct_conv(const MaskedConv& problem, const DirectSchedule& schedule);

// All candidates, the chosen one first; returns their number, at most kMostCandidates.
int candidates(const MaskedConv& problem, const ActiveChannels& active, Isa isa, int threads, Candidate* list);

// Makes every later choice fall on the named kernel where it is a candidate, for benchmarks and tests; "" undoes it.
// Returns false, and changes nothing, where there is no such kernel.
bool prefer_conv_kernel(const char* name);

// How the vector kernels cut a problem, in its forward form, that has a plan.
Strips strips_of(const MaskedConv& problem);

// The same of the kernel `shifted`. False where it cannot run the problem.
bool shifted_lanes(const MaskedConv& problem, Strips& strips, ShiftedLanes& lanes);

}  // namespace maskfuse
