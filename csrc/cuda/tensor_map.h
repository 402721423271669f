// What a bulk copy (ptx_bulk_copy.h) knows of a matrix of 16-bit elements in global memory, written on the host and
// given to a kernel as a __grid_constant__ parameter.
#pragma once

#include "../cpu/dtype.h"
#include "machine.h"

#ifndef MASKFUSE_SIMT
#include <cuda.h>
#endif

namespace maskfuse::cuda {

// A copy takes a box of this many columns: what the widest swizzle spans.
inline constexpr int kBoxColumns = 64, kBoxRowBytes = 2 * kBoxColumns, kMostBoxRows = 256;

#ifdef MASKFUSE_SIMT
struct TensorMap {
  const uint16_t* data;
  int64_t rows, columns, ld;
  int box_rows;
};
#else
using TensorMap = CUtensorMap;
#endif

// A row-major matrix [rows][columns], rows `ld` elements apart, which do not overlap, for copies of box_rows x 64.
// `data` and rows are aligned to 16 bytes; sizes are at least 1 and below 2^31.
cudaError_t make_tensor_map(TensorMap* map, const void* data, int64_t rows, int64_t columns, int64_t ld, int box_rows,
                            Dtype dtype);

}  // namespace maskfuse::cuda
