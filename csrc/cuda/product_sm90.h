// Masked products of half matrices on Hopper: bulk copies, barriers in shared memory, wgmma with the masked weight from
// registers. What product.h does on every device since sm_80, for whole bits and aligned operands.
//
// The result is computed transposed, Ct[n][m] = sum over the depth of B[n] A[m], so that B, which is the weight, is the
// operand that wgmma takes from registers: there it is masked, between ldmatrix and the multiplication. weight_grad has
// no masked operand: both come from shared memory, and the mask falls on the result.
//
// A block has two groups of four warps that multiply, each 64 of a tile's 128 rows of Ct, and one warp that copies (of
// a group whose registers the others take). It runs tile after tile: while the groups write one, copies of the next are
// under way. Stages of 64 of the depth lie in a ring. A stage is copied when all eight warps have arrived at its
// `empty`, and read when `full` has its bytes.
#pragma once

#include "mask_fragments.h"
#include "product_sm90_work.h"
#include "ptx_group_mma.h"
#include "ptx_registers.h"
#include "ptx_store_matrix.h"

namespace maskfuse::cuda {

// The ring's place, one step after another.
template <class Tile>
struct Sm90Ring {
  char* shared;
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void next() {
    if (++stage == Tile::kStages) stage = 0, parity ^= 1;
  }
  __device__ __forceinline__ char* right() const { return shared + stage * Tile::kStageBytes; }
  __device__ __forceinline__ char* left() const { return right() + Tile::kRightBytes; }
  __device__ __forceinline__ SharedBarrier& full() const { return barriers()[stage]; }
  __device__ __forceinline__ SharedBarrier& empty() const { return barriers()[Tile::kStages + stage]; }
  __device__ __forceinline__ SharedBarrier* barriers() const { return (SharedBarrier*)(shared + Tile::kBarriersAt); }
};

// A stage, by one thread. An operand whose rows are C's comes as one box of the depth's 64 columns, one whose rows are
// the depth in boxes of 64 columns.
template <Pass kPass, class Tile>
__device__ __forceinline__ void copy_stage(const Sm90Problem& p, const Sm90Ring<Tile>& ring, int64_t m0, int64_t n0,
                                           int64_t depth) {
  constexpr int kBoxBytes = kDepth * kBoxRowBytes;
  ring.full().arrive_with(Tile::kStageBytes);
  if constexpr (kPass == Pass::forward)
    copy_box(ring.right(), p.right, n0, depth, &ring.full());
  else
    for (int box = 0; box < Tile::kN / kBoxColumns; ++box)
      copy_box(ring.right() + box * kBoxBytes, p.right, depth, n0 + box * kBoxColumns, &ring.full());
  if constexpr (kPass != Pass::weight_grad)
    copy_box(ring.left(), p.left, m0, depth, &ring.full());
  else
    for (int box = 0; box < Tile::kM / kBoxColumns; ++box)
      copy_box(ring.left() + box * kBoxBytes, p.left, depth, m0 + box * kBoxColumns, &ring.full());
}

// What the warp that copies does.
template <Pass kPass, class Tile>
__device__ __forceinline__ void copy_tiles(const Sm90Problem& p, Sm90Ring<Tile> ring, int64_t tiles) {
  const bool first_lane = lane_index() == 0;
  if (first_lane) prefetch(p.right), prefetch(p.left);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const Sm90Work work = sm90_work<kPass, Tile>(p, tile);
    if (first_lane)
      for (int i = 0; i < work.count; ++i, ring.next()) {
        const int64_t depth = work.block(i) * kDepth;
        ring.empty().wait(ring.parity ^ 1);  // the first time round at once
        copy_stage<kPass, Tile>(p, ring, work.m0, work.n0, depth);
      }
  }
}

// A warp's fragments of the weight's 16 rows of Ct by 64 of the depth, from the stage.
template <Pass kPass>
__device__ __forceinline__ void load_fragments(const char* right, int warp, uint32_t (&a)[4][4]) {
  constexpr bool kAlongDepth = kPass == Pass::forward;
  using Box = SharedTile<kDepth, kBoxColumns>;
  const int outer = kAlongDepth ? 16 * warp : 16 * (warp % kGroupWarps);
  const char* const from = right + (kAlongDepth ? 0 : warp / kGroupWarps * Box::kBytes);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const FragmentAddress at = fragment_address(lane_index(), outer, kGroupDepth * i, kAlongDepth, true);
    load_matrices<!kAlongDepth>(from + Box::at(at.row, at.piece), a[i]);
  }
}

// Starts a stage's products: the group's 64 rows of Ct by all columns.
template <class T, Pass kPass, class Tile>
__device__ __forceinline__ void multiply_stage(const Sm90Ring<Tile>& ring, int group, const uint32_t (&a)[4][4],
                                               float (&sums)[Tile::kHalves][64]) {
  constexpr bool kAlongDepth = kPass != Pass::weight_grad;
  constexpr uint32_t kBoxBytes = kDepth * kBoxRowBytes;
  const uint32_t right = shared_address(ring.right()) + (uint32_t)group * kBoxBytes, left = shared_address(ring.left());
#pragma unroll
  for (int i = 0; i < kDepth / kGroupDepth; ++i) {
    const int depth = i * kGroupDepth;
#pragma unroll
    for (int half = 0; half < Tile::kHalves; ++half) {
      // 128 rows of one box, or two boxes.
      const uint32_t at = left + half * kGroupColumns * kBoxRowBytes;
      const uint64_t b = group_operand(group_operand_at(at, depth, kAlongDepth), kAlongDepth);
      if constexpr (kAlongDepth)
        group_multiply<T>(sums[half], a[i], b);
      else
        group_multiply<T>(sums[half], group_operand(group_operand_at(right, depth, false), false), b);
    }
  }
}

// All sums of a tile. While one group of warps reads and masks its fragments, the other's products run.
template <class T, Pass kPass, class Tile>
__device__ __forceinline__ void sum_tile(const Sm90Problem& p, Sm90Ring<Tile>& ring, const Sm90Work& work,
                                         float (&sums)[Tile::kHalves][64]) {
  constexpr bool kMasked = kPass != Pass::weight_grad, kAlongDepth = kPass == Pass::forward;
  // Shuffled, so that the compiler sees that a warp's lanes have the same.
  const int warp = shuffle(warp_index(), 0), group = warp / kGroupWarps;
  // Bits are read one step before their turn, and where a list says which, the list two steps before.
  const auto block_of = [&](int i) { return kMasked && i < work.count ? work.block(i) : -1; };
  const auto word_of = [&](int64_t block) {
    return block >= 0 ? mask_word<kAlongDepth>(p.bits, p.bits_ld, p.weight_rows, work.n0 + 16 * warp, block) : 0;
  };
#pragma unroll
  for (int half = 0; half < Tile::kHalves; ++half)
#pragma unroll
    for (int i = 0; i < 64; ++i) sums[half][i] = 0;

  uint32_t fragments[4][4], word = word_of(block_of(0));
  int64_t next_block = block_of(1);
  for (int i = 0; i < work.count; ++i) {
    const uint32_t next_word = word_of(next_block);
    next_block = block_of(i + 2);
    ring.full().wait(ring.parity);
    if constexpr (kMasked) {
      load_fragments<kPass>(ring.right(), warp, fragments);
      mask_fragments<kAlongDepth>(word, fragments);
#pragma unroll
      for (auto& fragment : fragments) group_hold(fragment);
    }
#pragma unroll
    for (auto& half : sums) group_hold(half);
    group_begin();
    multiply_stage<T, kPass, Tile>(ring, group, fragments, sums);
    group_commit();
    group_wait<0>();
    if (lane_index() == 0) ring.empty().arrive();
    ring.next();
    word = next_word;
  }
#pragma unroll
  for (auto& half : sums) group_hold(half);
}

// Eight elements of C's row m from column n on, masked if the pass does so.
template <Pass kPass>
__device__ __forceinline__ void write_piece(const Sm90Problem& p, int64_t m, int64_t n, Piece piece) {
  if constexpr (kPass == Pass::weight_grad) {
    const uint32_t bits = ((const uint8_t*)(p.bits + m * p.bits_ld))[n / kPieceElements];
#pragma unroll
    for (int i = 0; i < 4; ++i) piece.word[i] &= pair_mask(bits >> 2 * i);
  }
  *(Piece*)((uint16_t*)p.c + m * p.c_ld + n) = piece;
}

// The group's 64 rows of Ct, as columns of C: 64 columns of Ct at a time are transposed into shared memory, and leave
// it in rows of C. A place is written again one barrier after its last reader.
template <class T, Pass kPass, class Tile>
__device__ __forceinline__ void write_tile(const Sm90Problem& p, char* shared, const Sm90Work& work,
                                           const float (&sums)[Tile::kHalves][64]) {
  using Staged = typename Tile::Staged;
  const int lane = lane_index(), warp = warp_index(), group = warp / kGroupWarps, in_group = warp % kGroupWarps;
  const int thread = (int)threadIdx.x % Tile::kGroupThreads;
  const int64_t n0 = work.n0 + group * kGroupRows, row = n0 + 16 * in_group + lane / 4;
  float bias[2] = {};
  if (p.bias)
    for (int i = 0; i < 2; ++i) bias[i] = row + 8 * i < p.n ? widened(((const T*)p.bias)[row + 8 * i]) : 0;
#pragma unroll
  for (int part = 0; part < Tile::kM / 64; ++part) {
    char* const staged = shared + Tile::kStagedAt + (group * 2 + part % 2) * Staged::kBytes;
    const float (&from)[64] = sums[part / 2];
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int d = 4 * (8 * (part % 2) + j + i / 2) + 2 * (i % 2);
        words[i] = pair_of<T>(from[d] + bias[i % 2], from[d + 1] + bias[i % 2]);
      }
      const int matrix = lane / 8, column = 8 * (j + matrix / 2) + lane % 8;
      store_matrices_transposed(staged + Staged::at(column, 2 * in_group + matrix % 2), words);
    }
    sync_part(1 + group, Tile::kGroupThreads);
#pragma unroll
    for (int i = thread; i < Staged::kPieces; i += Tile::kGroupThreads) {
      const int in_part = i / Staged::kRowPieces, piece = i % Staged::kRowPieces;
      const int64_t m = work.m0 + 64 * part + in_part, n = n0 + piece * kPieceElements;
      if (m < p.m && n < p.n) write_piece<kPass>(p, m, n, *(const Piece*)(staged + Staged::at(in_part, piece)));
    }
  }
}

#if defined(MASKFUSE_SIMT) || !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MASKFUSE_SM90_BODY 1
#else
#define MASKFUSE_SM90_BODY 0  // another device's copy of the kernel: not chosen there
#endif

template <class T, Pass kPass, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) product_sm90_kernel(const __grid_constant__ Sm90Problem p) {
#if !MASKFUSE_SM90_BODY
  asm volatile("trap;");
#else
  char* const shared = shared_memory();
  Sm90Ring<Tile> ring{shared};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kStages; ++i)
      ring.barriers()[i].begin(1), ring.barriers()[Tile::kStages + i].begin(Tile::kMultipliers);
    publish_barriers();
  }
  sync_block();
  const int64_t tiles = ceil_div(p.m, Tile::kM) * ceil_div(p.n, Tile::kN);
  if (warp_index() >= Tile::kMultipliers) {
    give_registers<40>();
    if (warp_index() == Tile::kMultipliers) copy_tiles<kPass, Tile>(p, ring, tiles);
    return;
  }
  take_registers<232>();  // with the others' no more than the 168 a thread that the block begins with
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const Sm90Work work = sm90_work<kPass, Tile>(p, tile);
    float sums[Tile::kHalves][64];
    sum_tile<T, kPass, Tile>(p, ring, work, sums);
    write_tile<T, kPass, Tile>(p, shared, work, sums);
  }
#endif
}

}  // namespace maskfuse::cuda
