// The mask's bits of a warp's fragments of a weight: 16 rows (columns) of the result by 64 of the depth, four fragments
// of ptx_mma.h's operand A.
//
// A lane reads one word of bits for all of them, ahead of time; lanes then trade words. A word, shifted so that a bit
// of each of its bytes becomes the byte's highest, is what prmt spreads over halves of a register: two words and one
// instruction give the mask of a pair of elements.
#pragma once

#include "matrix_source.h"
#include "ptx_bytes.h"

namespace maskfuse::cuda {

// prmt's selector of a pair's mask: the signs of byte `byte` of the first word, and of the second.
__host__ __device__ constexpr uint32_t pair_selector(int byte) {
  return (uint32_t)((8 + byte) * 0x11 | (12 + byte) * 0x1100);
}

// Bits of a weight [rows][columns], `ld` words a row; a fragment's 16 rows (columns) of the result begin at `outer`, a
// multiple of 16, its block of the depth at 64 * block.
//
// kAlongDepth: the weight's columns are the depth. Lane l has word l % 2 of row l / 2. Else its rows are, and lane l
// has in its low half the 16 bits of row l, in its high half those of row l + 32.
template <bool kAlongDepth>
__device__ __forceinline__ uint32_t mask_word(const uint32_t* bits, int64_t ld, int64_t rows, int64_t outer,
                                              int64_t block) {
  const int lane = lane_index();
  if constexpr (kAlongDepth) {
    const int64_t row = outer + lane / 2, word = 2 * block + lane % 2;
    return row < rows && word < ld ? bits[row * ld + word] : 0;
  } else {
    const int64_t row = kDepth * block + lane;
    if (outer / 32 >= ld) return 0;
    const uint16_t* const at = (const uint16_t*)(bits + row * ld) + outer / 16;
    const uint32_t low = row < rows ? at[0] : 0, high = row + kWarp < rows ? at[2 * kWarp * ld] : 0;
    return low | high << 16;
  }
}

// Masks the four fragments. Every lane of the warp takes part.
template <bool kAlongDepth>
__device__ __forceinline__ void mask_fragments(uint32_t word, uint32_t (&a)[4][4]) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      // Along the depth: word i of row g + 8 j, whose byte b has columns 8 b on. Else the rows 16 i + 8 j + 2 t and the
      // next one, whose byte b has g + 8 (b % 2), for the depth from 32 (b / 2) on.
      uint32_t first, second;
      if constexpr (kAlongDepth) {
        const uint32_t bits = shuffle(word, 2 * (g + 8 * j) + i);
        first = bits << (7 - 2 * t), second = bits << (6 - 2 * t);
      } else {
        first = shuffle(word, 16 * i + 8 * j + 2 * t) << (7 - g);
        second = shuffle(word, 16 * i + 8 * j + 2 * t + 1) << (7 - g);
      }
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const int fragment = kAlongDepth ? 2 * i + b / 2 : i + 2 * (b / 2);
        const int outer_half = kAlongDepth ? j : b % 2, depth_half = kAlongDepth ? b % 2 : j;
        a[fragment][outer_half + 2 * depth_half] &= permute_bytes(first, second, pair_selector(b));
      }
    }
}

}  // namespace maskfuse::cuda
