// Steps of one instruction set. Included by channel_gather_{avx2,avx512}.cpp only.
//
// V moves elements of type V::S unchanged, whatever number they are.
#pragma once

#include "channel_gather_steps.h"

namespace maskfuse {
namespace {

template <class V>
void compress_channels(char* to, const char* from, const ChannelStep* steps, int64_t count) {
  using S = typename V::S;
  for (int64_t i = 0; i < count; ++i) {
    const ChannelStep s = steps[i];
    // Behind the last bit there need not be a channel.
    const auto lane = V::load_bits((const S*)from + s.from, s.bits, 32 - __builtin_clz(s.bits));
    V::store_n((S*)to + s.to, V::compress(lane, s.bits), s.lanes);
  }
}

template <class V>
void spread_channels(char* to, const char* from, const ChannelStep* steps, int64_t count) {
  using S = typename V::S;
  for (int64_t i = 0; i < count; ++i) {
    const ChannelStep s = steps[i];
    const auto lane = V::load_n((const S*)from + s.from, __builtin_popcount(s.bits));
    V::store_n((S*)to + s.to, V::expand(lane, s.bits), s.lanes);
  }
}

template <class V>
ChannelSteps steps_of() {
  return {V::W, compress_channels<V>, spread_channels<V>};
}

}  // namespace
}  // namespace maskfuse
