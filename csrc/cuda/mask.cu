// One warp makes one word: each lane reads one byte, a ballot gathers the bits. Reads are coalesced, the
// words of a row are written by neighbouring warps. Bound by reading one byte an element.
#include <algorithm>

#include "mask.h"

namespace maskfuse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMostBlocks = 1 << 20;  // grid-stride loops take the rest

__global__ void __launch_bounds__(kThreads) pack_kernel(const uint8_t* __restrict__ dense, int64_t rows,
                                                        int64_t columns, int64_t words, uint32_t* __restrict__ bits) {
  const int lane = threadIdx.x & 31;
  const int64_t total = rows * words, stride = (int64_t)gridDim.x * kWarps;
  for (int64_t i = (int64_t)blockIdx.x * kWarps + (threadIdx.x >> 5); i < total; i += stride) {
    const int64_t row = i / words, column = (i - row * words) * 32 + lane;
    // Every lane of the warp takes the same turns of the loop, so the full mask is right.
    const uint32_t word = __ballot_sync(0xffffffffu, column < columns && dense[row * columns + column] != 0);
    if (lane == 0) bits[i] = word;
  }
}

__global__ void __launch_bounds__(kThreads) unpack_kernel(const uint32_t* __restrict__ bits, int64_t rows,
                                                          int64_t columns, int64_t words, uint8_t* __restrict__ dense) {
  const int lane = threadIdx.x & 31;
  const int64_t total = rows * words, stride = (int64_t)gridDim.x * kWarps;
  for (int64_t i = (int64_t)blockIdx.x * kWarps + (threadIdx.x >> 5); i < total; i += stride) {
    const int64_t row = i / words, column = (i - row * words) * 32 + lane;
    if (column < columns) dense[row * columns + column] = bits[i] >> lane & 1;
  }
}

unsigned blocks(int64_t words) { return (unsigned)std::min<int64_t>((words + kWarps - 1) / kWarps, kMostBlocks); }

}  // namespace

cudaError_t mask_pack(const uint8_t* dense, int64_t rows, int64_t columns, uint32_t* bits, cudaStream_t stream) {
  const int64_t words = (columns + 31) / 32;
  if (rows * words == 0) return cudaSuccess;
  pack_kernel<<<blocks(rows * words), kThreads, 0, stream>>>(dense, rows, columns, words, bits);
  return cudaGetLastError();
}

cudaError_t mask_unpack(const uint32_t* bits, int64_t rows, int64_t columns, uint8_t* dense, cudaStream_t stream) {
  const int64_t words = (columns + 31) / 32;
  if (rows * words == 0) return cudaSuccess;
  unpack_kernel<<<blocks(rows * words), kThreads, 0, stream>>>(bits, rows, columns, words, dense);
  return cudaGetLastError();
}

}  // namespace maskfuse::cuda
