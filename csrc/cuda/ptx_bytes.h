// The four bytes of a word: permuted (prmt), multiplied and added (dp4a, dp2a), summed over lanes (shfl).
#pragma once

#include "machine.h"

namespace maskfuse::cuda {

// Byte i of the result is the byte that nibble i of `selector` names: 0-3 are low's, 4-7 high's. With bit 3 of the
// nibble set, the result is that byte's highest bit, eight times.
__host__ __device__ __forceinline__ uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef __CUDA_ARCH__
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
#else
  const uint64_t bytes = (uint64_t)high << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15, byte = (uint32_t)(bytes >> (8 * (nibble & 7))) & 255;
    result |= (nibble & 8 ? (byte >> 7) * 255 : byte) << (8 * i);
  }
  return result;
#endif
}

// sum + a0 b0 + a1 b1 + a2 b2 + a3 b3 of unsigned bytes.
__host__ __device__ __forceinline__ uint32_t dot_bytes(uint32_t a, uint32_t b, uint32_t sum) {
#ifdef __CUDA_ARCH__
  return __dp4a(a, b, sum);
#else
  for (int i = 0; i < 32; i += 8) sum += (a >> i & 255) * (b >> i & 255);
  return sum;
#endif
}

// sum + a0 b0 + a1 b1 of the 16-bit halves of a and two bytes of b: its lower ones, or its upper ones.
template <bool kUpper>
__host__ __device__ __forceinline__ uint32_t dot_halves(uint32_t a, uint32_t b, uint32_t sum) {
#ifdef __CUDA_ARCH__
  return kUpper ? __dp2a_hi(a, b, sum) : __dp2a_lo(a, b, sum);
#else
  if (kUpper) b >>= 16;
  return sum + (a & 0xffff) * (b & 255) + (a >> 16) * (b >> 8 & 255);
#endif
}

// The sum of `value` over this lane and the lanes below it. Every lane of the warp takes part.
__device__ __forceinline__ uint32_t sum_to_lane(uint32_t value) {
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
#ifdef MASKFUSE_SIMT
    const uint32_t below = shuffle(value, lane_index() - by);
    if (lane_index() >= by) value += below;
#else
    asm volatile(
        "{ .reg .pred there; .reg .b32 below;\n"
        "shfl.sync.up.b32 below|there, %0, %1, 0, 0xffffffff;\n"
        "@there add.u32 %0, %0, below; }\n"
        : "+r"(value)
        : "r"(by));
#endif
  }
  return value;
}

}  // namespace maskfuse::cuda
