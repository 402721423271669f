// Division by a number that the host knows: a multiplication and a shift (Granlund & Montgomery 1994).
#pragma once

#include "machine.h"

namespace maskfuse::cuda {

// Of any number below 2^32, by one from 1 to 2^31.
struct Divisor {
  uint32_t value, multiplier;
  int shift;

  Divisor() = default;
  explicit Divisor(uint32_t divisor) : value(divisor), shift(0) {
    while (((uint64_t)1 << shift) < divisor) ++shift;
    multiplier = (uint32_t)((((uint64_t)1 << 32) * (((uint64_t)1 << shift) - divisor)) / divisor + 1);
  }

  __host__ __device__ __forceinline__ uint32_t quotient(uint32_t x) const {
    return (uint32_t)((((uint64_t)x * multiplier >> 32) + x) >> shift);
  }
};

}  // namespace maskfuse::cuda
