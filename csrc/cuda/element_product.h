// The product of two operands in float32 or float64, element by element: no tensor cores, every sum in order.
//
// A block of 16 x 16 threads computes a tile of 16 kEach x 16 kEach of C, a thread every sixteenth of its rows and
// columns. Both operands' parts of 16 of the depth lie in shared memory with the depth outermost; the next ones are
// read into registers while these are multiplied. Sources and results are those of product.h, by the element:
//   source.element(Block, outer, in_block)   the operand, 0 outside of it; kAlongDepth says what neighbours should read
//   result.write_one(row, column, sum)
// Blocks of the depth that a list leaves out are not visited, and few tiles are split over the depth, as in product.h.
#pragma once

#include "product.h"

namespace maskfuse::cuda {

inline constexpr int kElementDepth = 16, kElementSide = 16, kElementThreads = kElementSide * kElementSide;

// A thread's rows and columns: as many as fit its registers.
template <class Sum>
inline constexpr int kEach = sizeof(Sum) == 4 ? 8 : 4;

template <class T, class Left, class Right, class Result>
__global__ void __launch_bounds__(kElementThreads)
    element_product_kernel(const Left all_left, const Right all_right, const Result result_of_all, int64_t m, int64_t n,
                           const DepthBlocks depth, typename Accumulator<T>::type* partial) {
  using Sum = typename Accumulator<T>::type;
  constexpr int kSide = kElementSide * kEach<Sum>, kTurns = kSide * kElementDepth / kElementThreads;
  constexpr int kLd = kSide + 16 / (int)sizeof(Sum);  // rows of the depth begin in different banks
  constexpr int kSteps = kDepth / kElementDepth;      // of a block of the depth
  const int group = (int)blockIdx.z;
  const Left left = all_left.in_group(group);
  const Right right = all_right.in_group(group);
  const Result result = result_of_all.in_group(group);
  Sum* const a = (Sum*)shared_memory();
  Sum* const b = a + kElementDepth * kLd;
  const TileIndex tile = tile_of(blockIdx.x, ceil_div(m, kSide), ceil_div(n, kSide));
  const int64_t m0 = tile.m * kSide, n0 = tile.n * kSide;
  const int tm = (int)threadIdx.x / kElementSide, tn = (int)threadIdx.x % kElementSide;

  const int32_t* const list =
      depth.lists ? depth.lists + (depth.of_rows ? m0 : n0) / kListed * (1 + depth.all) : nullptr;
  int64_t count = list ? list[0] : depth.all;
  if (!result.wanted(m0, n0, kSide, kSide)) count = 0;
  const int64_t begin = count * blockIdx.y / gridDim.y * kSteps, end = count * (blockIdx.y + 1) / gridDim.y * kSteps;
  const auto block_at = [&](int64_t i) { return list ? (int64_t)list[1 + i] : i; };

  // Which element of a tile a thread carries: neighbours along what is contiguous in memory.
  Sum next_a[kTurns], next_b[kTurns];
  const auto place = [&](int turn, bool along_depth) {
    const int i = (int)threadIdx.x + turn * kElementThreads;
    struct {
      int outer, depth;
    } at = {along_depth ? i / kElementDepth : i % kSide, along_depth ? i % kElementDepth : i / kSide};
    return at;
  };
  const auto read = [&](int64_t step) {
    const auto left_block = left.at(block_at(step / kSteps));
    const auto right_block = right.at(block_at(step / kSteps));
    const int in_block = (int)(step % kSteps) * kElementDepth;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto l = place(turn, Left::kAlongDepth), r = place(turn, Right::kAlongDepth);
      next_a[turn] = (Sum)widened(left.element(left_block, m0 + l.outer, in_block + l.depth));
      next_b[turn] = (Sum)widened(right.element(right_block, n0 + r.outer, in_block + r.depth));
    }
  };

  Sum sums[kEach<Sum>][kEach<Sum>] = {};
  if (begin < end) read(begin);
  for (int64_t step = begin; step < end; ++step) {
    sync_block();  // the last step's readers are done
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto l = place(turn, Left::kAlongDepth), r = place(turn, Right::kAlongDepth);
      a[l.depth * kLd + l.outer] = next_a[turn], b[r.depth * kLd + r.outer] = next_b[turn];
    }
    sync_block();
    if (step + 1 < end) read(step + 1);
#pragma unroll
    for (int d = 0; d < kElementDepth; ++d) {
      Sum x[kEach<Sum>], y[kEach<Sum>];
#pragma unroll
      for (int i = 0; i < kEach<Sum>; ++i)
        x[i] = a[d * kLd + tm + kElementSide * i], y[i] = b[d * kLd + tn + kElementSide * i];
#pragma unroll
      for (int i = 0; i < kEach<Sum>; ++i)
#pragma unroll
        for (int j = 0; j < kEach<Sum>; ++j) sums[i][j] = multiply_add(x[i], y[j], sums[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < kEach<Sum>; ++i)
#pragma unroll
    for (int j = 0; j < kEach<Sum>; ++j) {
      const int64_t row = m0 + tm + kElementSide * i, column = n0 + tn + kElementSide * j;
      if (row >= m || column >= n) continue;
      if (gridDim.y == 1)
        result.write_one(row, column, sums[i][j]);
      else
        partial[(((int64_t)group * gridDim.y + blockIdx.y) * m + row) * n + column] = sums[i][j];
    }
}

// Adds the partial sums of a split product, in the order of the splits.
template <class Sum, class Result>
__global__ void __launch_bounds__(256)
    add_partial_elements_kernel(const Result result_of_all, int64_t m, int64_t n, int splits, const Sum* all_partial) {
  const Result result = result_of_all.in_group((int)blockIdx.y);
  const Sum* const partial = all_partial + (int64_t)blockIdx.y * splits * m * n;
  for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < m * n; i += (int64_t)gridDim.x * 256) {
    Sum sum = 0;
    for (int split = 0; split < splits; ++split) sum += partial[split * m * n + i];
    result.write_one(i / n, i % n, sum);
  }
}

// Parts of the depth, of at least kLeastPart blocks each, where the tiles alone would leave multiprocessors idle.
inline int element_splits(int64_t m, int64_t n, int64_t depth_blocks, int groups, int64_t sum_bytes,
                          int multiprocessors) {
  constexpr int64_t kLeastPart = 4, kMostSplits = 32;
  const int64_t side = kElementSide * (sum_bytes == 4 ? kEach<float> : kEach<double>);
  const int64_t tiles = groups * ceil_div(m, side) * ceil_div(n, side);
  if (tiles == 0 || tiles >= multiprocessors) return 1;
  int64_t splits = 2 * multiprocessors / tiles;
  if (splits > depth_blocks / kLeastPart) splits = depth_blocks / kLeastPart;
  if (splits > kMostSplits) splits = kMostSplits;
  return splits < 1 ? 1 : (int)splits;
}

// `partial` needs groups * splits * m * n sums where splits > 1.
template <class T, class Left, class Right, class Result>
cudaError_t launch_element_product(const Left& left, const Right& right, const Result& result, int64_t m, int64_t n,
                                   const DepthBlocks& depth, int splits, int groups, void* partial,
                                   cudaStream_t stream) {
  using Sum = typename Accumulator<T>::type;
  if (m == 0 || n == 0) return cudaSuccess;
  constexpr int64_t kSide = kElementSide * kEach<Sum>;
  constexpr size_t kShared = 2 * kElementDepth * (kSide + 16 / sizeof(Sum)) * sizeof(Sum);
  const int64_t tiles = ceil_div(m, kSide) * ceil_div(n, kSide);
  if (tiles > 0x7fffffff || groups > 65535) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      launch(element_product_kernel<T, Left, Right, Result>, dim3((unsigned)tiles, (unsigned)splits, (unsigned)groups),
             kElementThreads, kShared, stream, left, right, result, m, n, depth, (Sum*)partial);
  if (error != cudaSuccess || splits == 1) return error;
  const dim3 grid(grid_blocks(m * n, 256, 4096), (unsigned)groups);
  return launch(add_partial_elements_kernel<Sum, Result>, grid, 256, 0, stream, result, m, n, splits,
                (const Sum*)partial);
}

}  // namespace maskfuse::cuda
