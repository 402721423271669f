// A block takes a stretch of columns of several rows: neighbouring threads write neighbouring columns, and each reads
// its column's place once for all of its rows.
#include "machine.h"
#include "scatter_columns.h"

namespace maskfuse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kRows = 16;  // of a block

template <class Element>
__global__ void __launch_bounds__(kThreads)
    scatter_columns_kernel(const Element* __restrict__ from, int64_t from_columns, int64_t rows, int64_t columns,
                           const int32_t* __restrict__ places, const Element* __restrict__ fill,
                           Element* __restrict__ to, int64_t to_ld, int64_t stretches) {
  const int64_t column = (int64_t)(blockIdx.x % stretches) * kThreads + threadIdx.x;
  const int64_t row0 = blockIdx.x / stretches * kRows, end = row0 + kRows < rows ? row0 + kRows : rows;
  if (column >= columns) return;
  const int64_t place = places[column];
  const bool there = place >= 0 && place < from_columns;
  const Element otherwise = fill ? fill[column] : Element{};
#pragma unroll 4
  for (int64_t row = row0; row < end; ++row)
    to[row * to_ld + column] = there ? from[row * from_columns + place] : otherwise;
}

template <class Element>
cudaError_t run(const void* from, int64_t from_columns, int64_t rows, int64_t columns, const int32_t* places,
                const void* fill, void* to, int64_t to_ld, cudaStream_t stream) {
  const int64_t stretches = ceil_div(columns, kThreads), blocks = stretches * ceil_div(rows, kRows);
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  return launch(scatter_columns_kernel<Element>, dim3((unsigned)blocks), kThreads, 0, stream, (const Element*)from,
                from_columns, rows, columns, places, (const Element*)fill, (Element*)to, to_ld, stretches);
}

}  // namespace

cudaError_t scatter_columns(const void* from, int64_t from_columns, int64_t rows, int64_t columns,
                            const int32_t* places, const void* fill, int64_t element, void* to, int64_t to_ld,
                            cudaStream_t stream) {
  switch (element) {
    case 2:
      return run<uint16_t>(from, from_columns, rows, columns, places, fill, to, to_ld, stream);
    case 4:
      return run<uint32_t>(from, from_columns, rows, columns, places, fill, to, to_ld, stream);
    case 8:
      return run<uint64_t>(from, from_columns, rows, columns, places, fill, to, to_ld, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace maskfuse::cuda
