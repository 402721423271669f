// What product_sm90.h computes and in which pieces: the problem, a block's tile, and which tiles and blocks of the
// depth have anything to do.
#pragma once

#include "../cpu/masked_linear.h"
#include "product.h"
#include "ptx_bulk_copy.h"
#include "ptx_group_mma.h"

namespace maskfuse::cuda {

// kHalves times 128 columns of Ct: rows of C.
template <int kHalves_>
struct Sm90Tile {
  static constexpr int kHalves = kHalves_, kM = kHalves * kGroupColumns, kN = 2 * kGroupRows;
  static constexpr int kGroups = kN / kGroupRows, kGroupThreads = kGroupWarps * kWarp;
  static constexpr int kMultipliers = kGroups * kGroupWarps, kThreads = (kMultipliers + kGroupWarps) * kWarp;
  static constexpr int kRightBytes = kN * kBoxRowBytes, kLeftBytes = kM * kBoxRowBytes;
  static constexpr int kStageBytes = kRightBytes + kLeftBytes, kStages = kHalves == 2 ? 4 : 6;
  // Results pass through shared memory, 64 x 64 of a group at a time, in two places by turns.
  using Staged = SharedTile<64, 64>;
  static constexpr int kStagedAt = kStages * kStageBytes, kBarriersAt = kStagedAt + kGroups * 2 * Staged::kBytes;
  static constexpr int kSharedBytes = kBarriersAt + 2 * kStages * (int)sizeof(SharedBarrier);
  static_assert(kSharedBytes <= 227 << 10 && kDepth == kBoxColumns && kM <= kMostBoxRows);
};

struct Sm90Problem {
  TensorMap right, left;  // B and A, in boxes as copy_stage takes them
  int64_t m, n, depth_blocks;
  const int32_t* lists;  // as DepthBlocks's of C's columns; weight_grad: of the mask's rows, and what is not in them is
                         // zero in C. Or null.
  const uint32_t* bits;
  int64_t bits_ld, weight_rows;  // of B: not used by weight_grad
  const void* bias;              // or null
  void* c;
  int64_t c_ld;
};

// Whether weight_grad's mask, by its lists of 64 columns for each 128 rows, leaves anything of a tile. All lanes ask.
__device__ __forceinline__ bool tile_is_listed(const Sm90Problem& p, int64_t m0, int64_t n0, int rows, int columns) {
  const int64_t ld = 1 + ceil_div(p.n, kDepth);
  bool found = false;
  for (int64_t group = m0 / kListed; group < ceil_div(m0 + rows < p.m ? m0 + rows : p.m, kListed); ++group) {
    const int32_t* const list = p.lists + group * ld;
    for (int i = lane_index(); i < list[0]; i += kWarp)
      found = found || (list[1 + i] >= n0 / kDepth && list[1 + i] < (n0 + columns) / kDepth);
  }
  return ballot(found) != 0;
}

// The same by the bits themselves.
__device__ __forceinline__ bool tile_has_bits(const Sm90Problem& p, int64_t m0, int64_t n0, int rows, int columns) {
  const int words = columns / 32;
  bool found = false;
  for (int i = lane_index(); i < rows * words; i += kWarp) {
    const int64_t row = m0 + i / words, word = n0 / 32 + i % words;
    found = found || (row < p.m && word < p.bits_ld && p.bits[row * p.bits_ld + word] != 0);
  }
  return ballot(found) != 0;
}

// A tile of C, and the blocks of the depth it takes.
struct Sm90Work {
  int64_t m0, n0;
  const int32_t* list;  // or null: all
  int count;
  __device__ __forceinline__ int64_t block(int i) const { return list ? list[1 + i] : i; }
};

template <Pass kPass, class Tile>
__device__ __forceinline__ Sm90Work sm90_work(const Sm90Problem& p, int64_t index) {
  const TileIndex tile = tile_of(index, ceil_div(p.m, Tile::kM), ceil_div(p.n, Tile::kN));
  Sm90Work work{tile.m * Tile::kM, tile.n * Tile::kN, nullptr, (int)p.depth_blocks};
  if constexpr (kPass == Pass::weight_grad) {
    const bool wanted = p.lists ? tile_is_listed(p, work.m0, work.n0, Tile::kM, Tile::kN)
                                : tile_has_bits(p, work.m0, work.n0, Tile::kM, Tile::kN);
    if (!wanted) work.count = 0;
  } else if (p.lists) {
    static_assert(Tile::kN == kListed);
    work.list = p.lists + tile.n * (1 + p.depth_blocks);
    work.count = work.list[0];
  }
  return work;
}

}  // namespace maskfuse::cuda
