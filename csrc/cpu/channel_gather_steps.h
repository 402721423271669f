// The channels of a pixel by vectors, for lists that rise: what is taken of W channels moves together in a register
// (gather, select), or W outputs are made of channels that follow each other and zeros between them (scatter).
#pragma once

#include <stdint.h>

namespace maskfuse {

// Channels from `from` on become outputs from `to` on, `lanes` of which are written, at most W. A compressing step
// reads channels [from, from + W) where bits are set, and those it writes beyond their number are the next steps'; a
// spreading one reads as many channels as bits are set, each of which goes to a bit.
struct ChannelStep {
  int32_t from, to;
  uint32_t bits;
  int32_t lanes;
};

// Addresses of the first channel and the first output, which need not be aligned; steps in order.
using CopySteps = void (*)(char* to, const char* from, const ChannelStep* steps, int64_t count);

struct ChannelSteps {
  int32_t width;  // W, at most 32; 0 where there are none for elements of this size
  CopySteps compress, spread;
};

ChannelSteps channel_steps_avx2(int64_t element);
ChannelSteps channel_steps_avx512(int64_t element);

// Those of the level in use.
ChannelSteps channel_steps(int64_t element);

// Writes the steps of a list without entries below 0, if it rises; of one of rising neighbours, the channels from
// some on, and entries below 0. Returns how many, -1 if the list is not so. `steps` has room for channels / width + 1,
// or count / width + 1.
int64_t compressing_steps(const int32_t* list, int64_t count, int64_t outputs, int32_t width, ChannelStep* steps);
int64_t spreading_steps(const int32_t* list, int64_t count, int64_t outputs, int32_t width, ChannelStep* steps);

}  // namespace maskfuse
