// Packing a weight for masked_linear_decode: masked_linear_tiles.h has the layout.
#pragma once

#include "../cpu/dtype.h"
#include "stream.h"

namespace maskfuse::cuda {

// A weight [rows, columns] as its mask's bits and its active values.
struct PackedTiles {
  const void* data;  // at a multiple of 16
  const uint32_t* offsets;
  int64_t rows, columns;
  Dtype dtype;
  int unit;         // weights in a unit: 1, or for half types 2
  int64_t longest;  // slab, in pieces of 16 bytes
};

// The unit to pack in: two where `active` of all weights are so few that decoding binds, not memory.
int decode_unit(Dtype dtype, int64_t active, int64_t weights);

// Slabs of 16 x 128 weights.
int64_t decode_slabs(int64_t rows, int64_t columns);

// Step 1: offsets[0 .. slabs] in pieces of 16 bytes, the last one the size of all data, and offsets[slabs + 1], the
// longest slab's. The caller reads these two and allocates. bits: as in csrc/cpu/mask.h.
cudaError_t decode_count(const uint32_t* bits, int64_t rows, int64_t columns, Dtype dtype, int unit, uint32_t* offsets,
                         cudaStream_t stream);

// Step 2: data. weight: rows weight_ld elements apart; what is masked is not looked at.
cudaError_t decode_pack(const uint32_t* bits, const void* weight, int64_t weight_ld, int64_t rows, int64_t columns,
                        Dtype dtype, int unit, const uint32_t* offsets, void* data, cudaStream_t stream);

}  // namespace maskfuse::cuda
