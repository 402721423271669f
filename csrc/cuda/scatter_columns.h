// Columns of a matrix put back in their places between columns that are masked.
#pragma once

#include "stream.h"

namespace maskfuse::cuda {

// to[r][c] = from[r][places[c]], or where places[c] is no column of `from`, fill[c], or without `fill` zero. `from` is
// dense, [rows, from_columns] elements of `element` bytes (2, 4 or 8); `to` has to_ld a row and `columns` columns.
cudaError_t scatter_columns(const void* from, int64_t from_columns, int64_t rows, int64_t columns,
                            const int32_t* places, const void* fill, int64_t element, void* to, int64_t to_ld,
                            cudaStream_t stream);

}  // namespace maskfuse::cuda
