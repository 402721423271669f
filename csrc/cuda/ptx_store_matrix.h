// stmatrix (sm_90): four 8x8 matrices of 16-bit elements from a warp's registers to shared memory, transposed.
//
// Lane l holds, in word i, of matrix i the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, and names where column l
// % 8 of matrix l / 8 goes: 16 bytes at a multiple of 16.
#pragma once

#include "machine.h"

namespace maskfuse::cuda {

__device__ __forceinline__ void store_matrices_transposed(void* column, const uint32_t (&from)[4]) {
#ifdef MASKFUSE_SIMT
  if ((uintptr_t)column % 16) throw std::runtime_error("stmatrix: a place is not aligned");
  struct Record {
    uint16_t* column;
    const uint32_t* from;
  } record{(uint16_t*)column, from};
  simt::exchange("stmatrix.trans", &record, [](void* const* lanes) {
    for (int l = 0; l < kWarp; ++l)
      for (int i = 0; i < 4; ++i)
        for (int half = 0; half < 2; ++half)
          ((Record*)lanes[8 * i + 2 * (l % 4) + half])->column[l / 4] =
              (uint16_t)(((Record*)lanes[l])->from[i] >> 16 * half);
  });
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(shared_address(column)),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
#endif
}

}  // namespace maskfuse::cuda
