// mma.sync m16n8k16 (sm_80): a warp's product of half matrices, summed in float.
//
// Lane l, with g = l / 4 and t = l % 4, holds of A[16][16] the pairs (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t +
// 8), each with the next column in the high half; of B[16][8] the pairs (2t, g) and (2t + 8, g), each with the next
// row; of the sums D[16][8] (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
#pragma once

#include "number.h"

namespace maskfuse::cuda {

template <class T>
__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef MASKFUSE_SIMT
  struct Record {
    float* d;
    uint32_t a[4], b[2];
  } record{d, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  simt::exchange("mma", &record, [](void* const* lanes) {
    float left[16][16], right[16][8];
    for (int l = 0; l < kWarp; ++l) {
      const Record& r = *(const Record*)lanes[l];
      const int g = l / 4, t = l % 4;
      for (int i = 0; i < 4; ++i) {
        left[g + 8 * (i & 1)][2 * t + 8 * (i >> 1)] = low_of<T>(r.a[i]);
        left[g + 8 * (i & 1)][2 * t + 8 * (i >> 1) + 1] = high_of<T>(r.a[i]);
      }
      for (int i = 0; i < 2; ++i) {
        right[2 * t + 8 * i][g] = low_of<T>(r.b[i]);
        right[2 * t + 8 * i + 1][g] = high_of<T>(r.b[i]);
      }
    }
    for (int l = 0; l < kWarp; ++l)
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + 8 * (i >> 1), column = 2 * (l % 4) + (i & 1);
        double sum = 0;
        for (int k = 0; k < 16; ++k) sum += (double)left[row][k] * right[k][column];
        ((Record*)lanes[l])->d[i] = (float)(((Record*)lanes[l])->d[i] + sum);
      }
  });
#else
  if constexpr (sizeof(T) == 2 && __is_same(T, Bf16))
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, "
        "%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace maskfuse::cuda
