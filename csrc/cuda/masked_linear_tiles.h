// A packed weight: the layout of its bits and active values, which mma.sync's operand A takes without a search.
//
// The weight is cut into strips of 16 rows and a strip into slabs of 128 columns. A unit is one weight, or two
// neighbouring ones of a row: two cost bytes for masked weights beside active ones, and halve the work of a slab, which
// pays where few weights are active (decode_unit). A slab has 64 / unit units for each lane of a warp.
//
// A lane's units are fields of four. A mma of 16 x 16 weights takes two fields of single weights (rows g and g + 8 of
// lane 4 g + t) or one of pairs. The columns of an operand may come in any order if x has them in the same: a lane
// takes eight neighbouring columns of 32 in two mma, so that its mask bits are a byte and its part of x is 16 bytes.
//
//   slab    words, 2 / unit a lane: bit f + 8 j of word w says whether unit j of the lane's field 8 w + f is active;
//           then the active units, by field, in a field by lane, in a lane by unit; then zeros up to a multiple of 16
//           bytes
//   data    the slabs of a strip, strip by strip; a slab without an active unit takes nothing
//   offsets where each slab begins, in pieces of 16 bytes
//
// What lanes read at once lies in a stretch of at most 128 units: at half of the weights active that is 128 bytes, each
// bank of shared memory once. A lane finds its own by counts of bits, four fields of them in the bytes of a word,
// summed over the lanes below it.
#pragma once

#include "../cpu/dtype.h"
#include "number.h"
#include "ptx_bytes.h"

namespace maskfuse::cuda {

inline constexpr int kStripRows = 16;
inline constexpr int kSlabColumns = 128;
inline constexpr int kWordFields = 8;
inline constexpr int kFieldUnits = 4;

__host__ __device__ constexpr int slab_units(int unit) { return kStripRows * kSlabColumns / unit; }
__host__ __device__ constexpr int lane_words(int unit) { return 2 / unit; }
__host__ __device__ constexpr int word_pieces(int unit) { return lane_words(unit) * kWarp * 4 / kPieceBytes; }
__host__ __device__ constexpr int64_t strip_count(int64_t rows) { return ceil_div(rows, kStripRows); }
__host__ __device__ constexpr int64_t slabs_a_strip(int64_t columns) { return ceil_div(columns, kSlabColumns); }

// Pieces of a slab with `active` units.
__host__ __device__ constexpr int64_t slab_pieces(int64_t active, int unit, int64_t element_bytes) {
  return active == 0 ? 0 : word_pieces(unit) + ceil_div(active * unit * element_bytes, kPieceBytes);
}

// Where a unit lies: its row in the strip, its first column in the slab.
struct Place {
  int row, column;
};

template <int kUnit>  // weights in a unit
__host__ __device__ constexpr Place unit_place(int lane, int field, int j) {
  const int g = lane / 4, t = lane % 4;
  if constexpr (kUnit == 1) {
    // Two fields a mma: four columns of row g, then of row g + 8.
    const int mma = field / 2;
    return {g + 8 * (field % 2), 32 * (mma / 2) + 8 * t + 4 * (mma % 2) + j};
  } else {
    // One field a mma, in the order of the operand's registers.
    return {g + 8 * (j % 2), 32 * (field / 2) + 8 * t + 4 * (field % 2) + 2 * (j / 2)};
  }
}

// The bits of field `field` of a word, each in the lowest bit of a byte.
__host__ __device__ constexpr uint32_t field_bits(uint32_t word, int field) { return word >> field & 0x01010101u; }

// Units below this lane's in each field of a word, and all of a field's: fields 0 to 3 in the bytes of the first count,
// 4 to 7 in the second's. A field has at most 128, so that no byte overflows.
struct FieldCounts {
  uint32_t below[2], all[2];
};

__device__ __forceinline__ FieldCounts field_counts(uint32_t word) {
  FieldCounts counts;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t mine = 0;
#pragma unroll
    for (int f = 0; f < 4; ++f) mine += dot_bytes(field_bits(word, 4 * half + f), 0x01010101u, 0) << (8 * f);
    const uint32_t to_mine = sum_to_lane(mine);
    counts.below[half] = to_mine - mine;
    counts.all[half] = shuffle(to_mine, kWarp - 1);
  }
  return counts;
}

// offset + `bytes` for each unit of the field that is counted.
__host__ __device__ __forceinline__ uint32_t after_units(const uint32_t (&counts)[2], int field, int bytes,
                                                         uint32_t offset) {
  return dot_bytes(counts[field / 4], (uint32_t)bytes << (8 * (field % 4)), offset);
}

// offset + `bytes` for each of the field's bits below unit j.
__host__ __device__ __forceinline__ uint32_t after_bits(uint32_t bits, int j, int bytes, uint32_t offset) {
  return dot_bytes(bits, (uint32_t)bytes * (uint32_t)(0x01010101ull & ((1ull << (8 * j)) - 1)), offset);
}

// A pair of neighbouring weights, units 0 and 1 of a field or 2 and 3, whose active ones begin with `next`, `after`
// behind it. An inactive weight becomes the zeros of a widened value's upper half.
template <bool kUpper>
__host__ __device__ __forceinline__ uint32_t placed_pair(uint32_t bits, uint32_t next, uint32_t after) {
  // Nibbles 3232: zeros. The low weight takes 10, next, in place of 32. The high one takes 32 - 22 = 10, next, or
  // behind an active low one 32 + 44 - 22 = 54, after.
  constexpr uint32_t kLow = 0x4400 - 0x22, kHigh = 0x10000 - 0x2200;
  return permute_bytes(next, after, dot_halves<kUpper>(kHigh << 16 | kLow, bits, 0x3232));
}

}  // namespace maskfuse::cuda
