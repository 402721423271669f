// The product of two operands in half precision, summed in float: C[m][n] = sum over the depth of A B.
//
// A block computes a tile of C. It walks the depth in blocks of 64, kStages of them in shared memory at once. What the
// operands are is the business of their sources (product_operand.h), which hand out pieces of eight consecutive
// elements: a matrix, a masked weight, pixels of an image. A plain source is copied past the registers (cp.async); a
// masked one is read into registers while the tensor cores work on an earlier block, masked, and then written to shared
// memory, so that the masked weight never exists outside of it.
//
// The depth's blocks are those of a list, where there is one: blocks of a weight that are empty are not visited. A
// product with few tiles is split over the depth: partial sums in float go to memory, and a second kernel adds them in
// order. No sum depends on which block runs first.
//
// A result has: wanted(row, column, rows, columns), by all threads of a block: whether any element of a tile is;
// write(row, column, sums) for eight consecutive columns; in_group(g).
#pragma once

#include "product_operand.h"
#include "ptx_mma.h"

namespace maskfuse::cuda {

// The tile of a block, kWarpsM x kWarpsN warps of it.
template <int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kStages_>
struct ProductTile {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kStages = kStages_;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static constexpr int kStageBytes = (kM + kN) * kDepth * 2;
  // Sums pass through shared memory so that rows of C are written whole; the pad spreads rows over banks.
  static constexpr int kSumsLd = kN + 4, kSumsBytes = kM * kSumsLd * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes > kSumsBytes ? kStages * kStageBytes : kSumsBytes;
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0 && kStages >= 2);
};
using LargeTile = ProductTile<128, 128, 2, 4, 3>;
using SmallTile = ProductTile<64, 64, 2, 2, 3>;

// Which blocks of the depth a tile of C takes: all, or those of its group's list, [count, block, block, ...].
struct DepthBlocks {
  int64_t all;
  const int32_t* lists;  // or null; [groups][1 + all], for groups of kListed rows (columns) of C
  bool of_rows;          // the lists are those of the rows of C, else of its columns
};
inline constexpr int kListed = 128;

// Tiles of C in the order of blocks: kBand rows of tiles at a time, so that blocks that run together share operands.
inline constexpr int64_t kBand = 8;
struct TileIndex {
  int64_t m, n;
};
__host__ __device__ inline TileIndex tile_of(int64_t block, int64_t m_tiles, int64_t n_tiles) {
  const int64_t band = block / (kBand * n_tiles), first = band * kBand;
  const int64_t rows = m_tiles - first < kBand ? m_tiles - first : kBand, in_band = block - first * n_tiles;
  return {first + in_band % rows, in_band / rows};
}

// One block of the depth: the warp's part of the tile of C.
template <class T, class Tile, class Left, class Right>
__device__ __forceinline__ void multiply_block(const char* left, const char* right, int m, int n,
                                               float (&sums)[Tile::kWarpM / 16][Tile::kWarpN / 8][4]) {
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += 16) {
    uint32_t a[Tile::kWarpM / 16][4], b[Tile::kWarpN / 16][4];
#pragma unroll
    for (int i = 0; i < Tile::kWarpM / 16; ++i) Left::template fragment<true>(left, m + 16 * i, depth, a[i]);
#pragma unroll
    for (int j = 0; j < Tile::kWarpN / 16; ++j) Right::template fragment<false>(right, n + 16 * j, depth, b[j]);
#pragma unroll
    for (int i = 0; i < Tile::kWarpM / 16; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kWarpN / 8; ++j)
        multiply_16x8x16<T>(sums[i][j], a[i], b[j / 2][2 * (j % 2)], b[j / 2][2 * (j % 2) + 1]);
  }
}

template <class T, class Tile, class LeftSource, class RightSource, class Result>
__global__ void __launch_bounds__(Tile::kThreads)
    product_kernel(const LeftSource left_source, const RightSource right_source, const Result result_of_all, int64_t m,
                   int64_t n, const DepthBlocks depth, float* partial) {
  using Left = Operand<T, LeftSource, Tile::kM, Tile::kThreads>;
  using Right = Operand<T, RightSource, Tile::kN, Tile::kThreads>;
  char* const shared = shared_memory();
  const TileIndex tile = tile_of(blockIdx.x, ceil_div(m, Tile::kM), ceil_div(n, Tile::kN));
  const int64_t m0 = tile.m * Tile::kM, n0 = tile.n * Tile::kN;
  const int group = (int)blockIdx.z;
  const Left left{left_source.in_group(group), m0};
  const Right right{right_source.in_group(group), n0};
  const Result result = result_of_all.in_group(group);

  // Step 1: this block's part of the depth.
  const int32_t* const list =
      depth.lists ? depth.lists + (depth.of_rows ? m0 : n0) / kListed * (1 + depth.all) : nullptr;
  int64_t count = list ? list[0] : depth.all;
  if (!result.wanted(m0, n0, Tile::kM, Tile::kN)) count = 0;
  const int begin = (int)(count * blockIdx.y / gridDim.y), end = (int)(count * (blockIdx.y + 1) / gridDim.y);
  const auto block_at = [&](int i) { return list ? (int64_t)list[1 + i] : (int64_t)i; };
  const auto left_tile = [&](int i) { return shared + (i - begin) % Tile::kStages * Tile::kStageBytes; };
  const auto right_tile = [&](int i) { return left_tile(i) + Tile::kM * kDepth * 2; };

  // Step 2: the first stages.
  typename Left::Flight left_flight;
  typename Right::Flight right_flight;
  left.prepare(left_flight);
  right.prepare(right_flight);
  for (int i = begin; i < begin + Tile::kStages - 1; ++i) {
    if (i < end) {
      left.start(block_at(i), left_tile(i), left_flight);
      right.start(block_at(i), right_tile(i), right_flight);
      left.finish(left_tile(i), left_flight);
      right.finish(right_tile(i), right_flight);
    }
    copy_commit();  // a group a stage, empty ones too: the wait below counts them
  }

  // Step 3: the depth. A stage is filled again one barrier after its last reader.
  const int warp = warp_index(), wm = warp % Tile::kWarpsM * Tile::kWarpM, wn = warp / Tile::kWarpsM * Tile::kWarpN;
  float sums[Tile::kWarpM / 16][Tile::kWarpN / 8][4] = {};
  for (int i = begin; i < end; ++i) {
    copy_wait<Tile::kStages - 2>();
    sync_block();
    const int next = i + Tile::kStages - 1;
    if (next < end) {
      left.start(block_at(next), left_tile(next), left_flight);
      right.start(block_at(next), right_tile(next), right_flight);
    }
    copy_commit();
    multiply_block<T, Tile, Left, Right>(left_tile(i), right_tile(i), wm, wn, sums);
    if (next < end) {
      left.finish(left_tile(next), left_flight);
      right.finish(right_tile(next), right_flight);
    }
  }
  copy_wait<0>();
  sync_block();  // stages become sums

  // Step 4: sums to shared memory, in rows, and from there to C or to the partial sums.
  float* const staged = (float*)shared;
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int i = 0; i < Tile::kWarpM / 16; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kWarpN / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* const to = staged + (wm + 16 * i + g + 8 * half) * Tile::kSumsLd + wn + 8 * j + 2 * t;
        to[0] = sums[i][j][2 * half], to[1] = sums[i][j][2 * half + 1];
      }
  sync_block();
  constexpr int kRowPieces = Tile::kN / kPieceElements;
  for (int i = (int)threadIdx.x; i < Tile::kM * kRowPieces; i += Tile::kThreads) {
    const int row = i / kRowPieces, column = i % kRowPieces * kPieceElements;
    const int64_t r = m0 + row, c = n0 + column;
    if (r >= m || c >= n) continue;
    const float* const from = staged + row * Tile::kSumsLd + column;
    if (gridDim.y == 1) {
      result.write(r, c, from);
    } else {
      const int64_t ld = ceil_div(n, kPieceElements) * kPieceElements;
      float* const to = partial + (((int64_t)group * gridDim.y + blockIdx.y) * m + r) * ld + c;
#pragma unroll
      for (int e = 0; e < kPieceElements; ++e) to[e] = from[e];
    }
  }
}

// Adds the partial sums of a split product, in the order of the splits.
template <class Result>
__global__ void __launch_bounds__(256)
    add_partial_kernel(const Result result_of_all, int64_t m, int64_t n, int splits, const float* all_partial) {
  const Result result = result_of_all.in_group((int)blockIdx.y);
  const int64_t row_pieces = ceil_div(n, kPieceElements), ld = row_pieces * kPieceElements;
  const float* const partial = all_partial + (int64_t)blockIdx.y * splits * m * ld;
  for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < m * row_pieces; i += (int64_t)gridDim.x * 256) {
    const int64_t row = i / row_pieces, column = i % row_pieces * kPieceElements;
    float sums[kPieceElements] = {};
    for (int split = 0; split < splits; ++split) {
      const float* const from = partial + (split * m + row) * ld + column;
#pragma unroll
      for (int e = 0; e < kPieceElements; ++e) sums[e] += from[e];
    }
    result.write(row, column, sums);
  }
}

// How products of one shape are cut: large or small tiles, and into how many parts of its depth.
struct ProductCut {
  bool large;
  int splits, groups;
};

// Large tiles where they give every multiprocessor one; else small ones, and where those are few too, parts of the
// depth of at least kLeastPart blocks each. `partial` needs groups * splits * m * (n rounded up to 8) floats where
// splits > 1.
inline ProductCut cut_product(int64_t m, int64_t n, int64_t depth_blocks, int groups, int multiprocessors) {
  constexpr int64_t kLeastPart = 4, kMostSplits = 32;
  const bool wide = m > SmallTile::kM && n > SmallTile::kN;
  if (wide && groups * ceil_div(m, LargeTile::kM) * ceil_div(n, LargeTile::kN) >= multiprocessors)
    return {true, 1, groups};
  const int64_t tiles = groups * ceil_div(m, SmallTile::kM) * ceil_div(n, SmallTile::kN);
  if (tiles == 0) return {false, 1, groups};
  int64_t splits = 2 * multiprocessors / tiles;
  if (splits > depth_blocks / kLeastPart) splits = depth_blocks / kLeastPart;
  if (splits > kMostSplits) splits = kMostSplits;
  return {false, splits < 1 ? 1 : (int)splits, groups};
}
inline int64_t partial_floats(const ProductCut& cut, int64_t m, int64_t n) {
  return cut.splits > 1 ? cut.groups * cut.splits * m * ceil_div(n, kPieceElements) * kPieceElements : 0;
}

template <class T, class Left, class Right, class Result>
cudaError_t launch_product(const Left& left, const Right& right, const Result& result, int64_t m, int64_t n,
                           const DepthBlocks& depth, const ProductCut& cut, float* partial, cudaStream_t stream) {
  if (m == 0 || n == 0) return cudaSuccess;
  const auto run = [&]<class Tile>(Tile) {
    const int64_t tiles = ceil_div(m, Tile::kM) * ceil_div(n, Tile::kN);
    if (tiles > 0x7fffffff || cut.groups > 65535) return cudaErrorInvalidConfiguration;
    return launch(product_kernel<T, Tile, Left, Right, Result>,
                  dim3((unsigned)tiles, (unsigned)cut.splits, (unsigned)cut.groups), Tile::kThreads, Tile::kSharedBytes,
                  stream, left, right, result, m, n, depth, partial);
  };
  const cudaError_t error = cut.large ? run(LargeTile{}) : run(SmallTile{});
  if (error != cudaSuccess || cut.splits == 1) return error;
  const dim3 grid(grid_blocks(m * ceil_div(n, kPieceElements), 256, 4096), (unsigned)cut.groups);
  return launch(add_partial_kernel<Result>, grid, 256, 0, stream, result, m, n, cut.splits, (const float*)partial);
}

}  // namespace maskfuse::cuda
