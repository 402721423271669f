// What threads find together: equal values of a warp, the least of all.
#pragma once

#include "machine.h"

namespace maskfuse::cuda {

// Bit l of the result: whether lane l has the same value. Every lane of the warp takes part.
__device__ __forceinline__ uint32_t lanes_with(int32_t value) {
#ifdef MASKFUSE_SIMT
  struct Record {
    int32_t value;
    uint32_t result;
  } record{value, 0};
  simt::exchange("lanes_with", &record, [](void* const* lanes) {
    for (int l = 0; l < kWarp; ++l)
      for (int m = 0; m < kWarp; ++m)
        ((Record*)lanes[l])->result |= (uint32_t)(((Record*)lanes[l])->value == ((Record*)lanes[m])->value) << m;
  });
  return record.result;
#else
  return __match_any_sync(0xffffffffu, value);
#endif
}

// The least of what is there and what any thread brings: whatever their order, the same.
__device__ __forceinline__ void atomic_min(uint32_t* to, uint32_t value) {
#ifdef MASKFUSE_SIMT
  *to = value < *to ? value : *to;
#else
  atomicMin(to, value);
#endif
}

// Position of the lowest bit that is set, of a word that has one.
__device__ __forceinline__ int lowest_set(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __ffs((int)word) - 1;
#else
  return __builtin_ctz(word);
#endif
}

}  // namespace maskfuse::cuda
