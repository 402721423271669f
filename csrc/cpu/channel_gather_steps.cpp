// Lists of channels as steps of vectors.
#include "channel_gather_steps.h"

#include <algorithm>

#include "isa.h"

namespace maskfuse {

ChannelSteps channel_steps(int64_t element) {
#ifdef MASKFUSE_X86
  if (isa_in_use() == Isa::avx512) return channel_steps_avx512(element);
  if (isa_in_use() == Isa::avx2) return channel_steps_avx2(element);
#endif
  return {};
}

int64_t compressing_steps(const int32_t* list, int64_t count, int64_t outputs, int32_t width, ChannelStep* steps) {
  int64_t made = 0;
  for (int64_t i = 0; i < count;) {
    ChannelStep step{list[i] - list[i] % width, (int32_t)i, 0, (int32_t)std::min<int64_t>(width, outputs - i)};
    for (; i < count && list[i] >= step.from && list[i] - step.from < width; ++i) {
      if (i > 0 && list[i] <= list[i - 1]) return -1;
      step.bits |= 1u << (list[i] - step.from);
    }
    steps[made++] = step;
  }
  return made;
}

int64_t spreading_steps(const int32_t* list, int64_t count, int64_t outputs, int32_t width, ChannelStep* steps) {
  int64_t made = 0;
  int32_t next = -1;
  for (int64_t i = 0; i < count; i += width) {
    ChannelStep step{0, (int32_t)i, 0, (int32_t)std::min<int64_t>(width, outputs - i)};
    for (int64_t lane = 0; lane < step.lanes && i + lane < count; ++lane) {
      const int32_t entry = list[i + lane];
      if (entry < 0) continue;
      if (next >= 0 && entry != next) return -1;
      if (step.bits == 0) step.from = entry;
      step.bits |= 1u << lane;
      next = entry + 1;
    }
    steps[made++] = step;
  }
  return made;
}

}  // namespace maskfuse
