// One warp makes one word: each lane reads one byte, a ballot gathers the bits. Reads are coalesced, the
// words of a row are written by neighbouring warps. Bound by reading one byte an element.
#include "machine.h"
#include "mask.h"

namespace maskfuse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

__global__ void __launch_bounds__(kThreads) pack_kernel(const uint8_t* __restrict__ dense, int64_t rows,
                                                        int64_t columns, int64_t words, uint32_t* __restrict__ bits) {
  const int lane = lane_index();
  const int64_t total = rows * words, stride = (int64_t)gridDim.x * kWarps;
  // Every lane of a warp takes the same turns.
  for (int64_t i = (int64_t)blockIdx.x * kWarps + warp_index(); i < total; i += stride) {
    const int64_t row = i / words, column = (i - row * words) * 32 + lane;
    const uint32_t word = ballot(column < columns && dense[row * columns + column] != 0);
    if (lane == 0) bits[i] = word;
  }
}

__global__ void __launch_bounds__(kThreads) unpack_kernel(const uint32_t* __restrict__ bits, int64_t rows,
                                                          int64_t columns, int64_t words, uint8_t* __restrict__ dense) {
  const int lane = lane_index();
  const int64_t total = rows * words, stride = (int64_t)gridDim.x * kWarps;
  for (int64_t i = (int64_t)blockIdx.x * kWarps + warp_index(); i < total; i += stride) {
    const int64_t row = i / words, column = (i - row * words) * 32 + lane;
    if (column < columns) dense[row * columns + column] = bits[i] >> lane & 1;
  }
}

}  // namespace

cudaError_t mask_pack(const uint8_t* dense, int64_t rows, int64_t columns, uint32_t* bits, cudaStream_t stream) {
  const int64_t words = ceil_div(columns, 32);
  return launch(pack_kernel, grid_blocks(rows * words, kWarps), kThreads, 0, stream, dense, rows, columns, words, bits);
}

cudaError_t mask_unpack(const uint32_t* bits, int64_t rows, int64_t columns, uint8_t* dense, cudaStream_t stream) {
  const int64_t words = ceil_div(columns, 32);
  return launch(unpack_kernel, grid_blocks(rows * words, kWarps), kThreads, 0, stream, bits, rows, columns, words,
                dense);
}

}  // namespace maskfuse::cuda
