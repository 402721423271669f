// The mask as bits: packing, unpacking, and what structure the bits have.
//
// A mask of rows x columns takes words(columns) 32-bit words a row, least significant bit first; the bits
// past the last column are zero.
#pragma once

#include <stdint.h>

namespace maskfuse {

inline constexpr int64_t mask_words(int64_t columns) { return (columns + 31) / 32; }

// Bits of a row's word w that are columns.
inline uint32_t mask_columns(int64_t w, int64_t columns) {
  const int64_t count = columns - w * 32;
  return count < 32 ? (1u << (count & 31)) - 1 : ~0u;
}

// Set bits of a word, without the instruction that a baseline build may not use or the call that would replace it.
inline int count_bits(uint32_t word) {
  word -= word >> 1 & 0x55555555u;
  word = (word & 0x33333333u) + (word >> 2 & 0x33333333u);
  return (int)(((word + (word >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
}

// dense: one byte an element, 0 or not, contiguous. Rows [row0, row1) are packed.
void mask_pack(const uint8_t* dense, int64_t columns, uint32_t* bits, int64_t row0, int64_t row1);

// The inverse; writes bytes 0 and 1.
void mask_unpack(const uint32_t* bits, int64_t columns, uint8_t* dense, int64_t row0, int64_t row1);

// Writes the transposed bits, [columns / taps][mask_words(rows * taps)], where `taps` neighbouring columns stay
// together: rows [begin, end) of the result, in steps of 32.
void mask_transpose(const uint32_t* bits, int64_t rows, int64_t columns, int64_t taps, uint32_t* to, int64_t begin,
                    int64_t end);

enum class Structure : int64_t { empty, full, channels, blocks, n_m, unstructured };

struct MaskStructure {
  Structure kind;
  int64_t active;
  // The largest tile, aligned to the origin, on a grid of which the mask is constant (blocks), or 1, 1.
  int64_t block_rows, block_columns;
  // Exactly n of every m along the input dimension (n_m), or 0, 0.
  int64_t n, m;
};

// Columns are channels x inner (inner = kernel height * width of a convolution, 1 for a linear layer).
//   channels   every row is empty or equal to one pattern that is constant over a channel
//   blocks     constant on a grid of block_rows x block_columns > 1 x 1
//   n_m        n of m in 2, 4, 8, 16, 32 consecutive channels
MaskStructure mask_structure(const uint32_t* bits, int64_t rows, int64_t columns, int64_t inner);

}  // namespace maskfuse
