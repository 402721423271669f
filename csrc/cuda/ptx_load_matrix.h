// ldmatrix (sm_75): four 8x8 matrices of 16-bit elements from shared memory into a warp's registers.
//
// Lane l names the row l % 8 of matrix l / 8: 16 bytes at a multiple of 16. Lane l then holds, in word i, of matrix i
// the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4; transposed, of column l / 4: what mma takes as an operand's
// fragment.
#pragma once

#include "machine.h"

#ifdef MASKFUSE_SIMT
#include <stdexcept>
#endif

namespace maskfuse::cuda {

template <bool kTransposed>
__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&to)[4]) {
#ifdef MASKFUSE_SIMT
  if ((uintptr_t)row % 16) throw std::runtime_error("a matrix's row is not aligned");  // the device would fault
  struct Record {
    const uint16_t* row;
    uint32_t* to;
  } record{(const uint16_t*)row, to};
  simt::exchange(kTransposed ? "ldmatrix.trans" : "ldmatrix", &record, [](void* const* lanes) {
    const auto element = [&](int matrix, int r, int c) { return (uint32_t)((Record*)lanes[8 * matrix + r])->row[c]; };
    for (int l = 0; l < kWarp; ++l)
      for (int i = 0; i < 4; ++i) {
        const int a = l / 4, b = 2 * (l % 4);
        ((Record*)lanes[l])->to[i] =
            kTransposed ? element(i, b, a) | element(i, b + 1, a) << 16 : element(i, a, b) | element(i, a, b + 1) << 16;
      }
  });
#else
  const uint32_t from = (uint32_t)__cvta_generic_to_shared(row);
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
#endif
}

}  // namespace maskfuse::cuda
