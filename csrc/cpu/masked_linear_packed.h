// The blocked product: A in cache-sized blocks, B in panels that are packed, masked and used at once.
// Included by masked_linear_{avx2,avx512}.cpp only.
//
//   for a block of rows of A (m_block)                     stays in the second-level cache
//     for a block of k (k_block)
//       pack A
//       for a column panel of B
//         find where it is not empty, pack that            stays in the first- or second-level cache
//         for each register tile: sums over the runs, into C
//
// float and double sums go straight to C. Half types sum into a float block of scratch, which is
// rounded once, when k is done.
#pragma once

#include "masked_linear_tile.h"

namespace maskfuse {
namespace {

// Register and cache blocking of one vector type.
//   MR_      rows of C in registers; MR_ * NV_ accumulators + NV_ vectors of B + 1 broadcast fit the file
//   NV_      vectors of C in registers
//   KC_      k block: the longer, the less often C is read and written again
//   MC_      rows of A in a block: MC_ * KC_ elements and a B panel fit the second-level cache; a multiple of MR_
template <class V_, int MR_, int NV_, int KC_, int MC_>
struct Tiling {
  using V = V_;
  using S = typename V::S;
  static constexpr int MR = MR_, NV = NV_, KC = KC_, MC = MC_;
  static constexpr int NR = NV * V::W;
  static constexpr int kPad = V::W;  // room for the vector that overhangs k, and off the cache's power of two
  static constexpr int kRowStride = KC + kPad;
  static_assert(MC % MR == 0 && KC % 32 == 0 && 32 % NR == 0);
};

template <class To, class From>
struct SameType {
  static constexpr bool value = false;
};
template <class T>
struct SameType<T, T> {
  static constexpr bool value = true;
};

// Rounds a finished float block to the half type of C, with what a tile could not apply in float.
template <class V, class T, MaskKind kMask>
static void round_block(const MaskedGemm& g, const float* sums, int64_t sums_ld, int64_t m0, int64_t m1, int64_t n0,
                        int64_t n1) {
  for (int64_t m = m0; m < m1; ++m) {
    for (int64_t n = n0; n < n1; n += V::W) {
      const int width = (int)min64(V::W, n1 - n);
      typename V::Reg r = V::load_n(sums + (m - m0) * sums_ld + (n - n0), width);
      if (g.bias) r = V::add(r, V::load_n((const T*)g.bias + n, width));
      if (g.pass == Pass::weight_grad && kMask == MaskKind::factor)
        r = V::mul(r, V::load_n((const T*)g.factor + m * g.factor_ld + n, width));
      V::store_n((T*)g.c + m * g.c_ld + n, r, width);
    }
  }
}

// True where the mask has no bit in rows [m, m + rows) of the 32 columns that hold [n, n + NR).
template <int NR>
static inline bool tile_is_empty(const MaskedGemm& g, int64_t m, int rows, int64_t n) {
  const uint32_t columns = NR == 32 ? ~0u : ((1u << (NR & 31)) - 1);
  uint32_t any = 0;
  for (int i = 0; i < rows; ++i) any |= mask_at(g.bits + (m + i) * g.bits_ld, n) & columns;
  return any == 0;
}

template <class Tile, class T, Pass kPass, MaskKind kMask>
static void packed_task(const MaskedGemm& g, const Block& block, void* scratch) {
  using V = typename Tile::V;
  using S = typename Tile::S;
  constexpr int MR = Tile::MR, NV = Tile::NV, NR = Tile::NR, KC = Tile::KC;
  constexpr bool kGrad = kPass == Pass::weight_grad;
  constexpr bool kDirect = SameType<S, T>::value;  // sums go straight to C
  // The mask belongs to B in forward and input_grad, to C in weight_grad.
  constexpr MaskKind kPackMask = kGrad ? MaskKind::none : kMask;
  constexpr int kRowStride = kGrad ? 1 : Tile::kRowStride;
  constexpr int kStep = kGrad ? MR : 1;

  // Scratch: A block | B panel | sums (half types).
  S* const a_block = (S*)scratch;
  S* const b_panel = a_block + Tile::MC * Tile::kRowStride;
  float* const sums = (float*)(b_panel + (KC + Tile::kPad) * NR);
  Run runs[KC / 32];

  const int64_t rows_total = block.m1 - block.m0;
  const int64_t row_blocks = ceil_div(rows_total, Tile::MC);
  const int64_t row_step = row_blocks > 0 ? ceil_div(ceil_div(rows_total, row_blocks), MR) * MR : MR;

  for (int64_t m0 = block.m0; m0 < block.m1; m0 += row_step) {
    const int64_t m1 = min64(m0 + row_step, block.m1);
    S* const c = kDirect ? (S*)g.c + m0 * g.c_ld + block.n0 : (S*)sums;
    const int64_t c_ld = kDirect ? g.c_ld : block.n1 - block.n0;

    int64_t k0 = 0;
    do {  // once even when k is 0: bias and zeros must be written
      const int64_t kc = min64(KC, g.k - k0);
      if constexpr (kGrad)
        pack_a_columns<V, T, MR>(g, m0, m1 - m0, k0, kc, a_block);
      else
        pack_a_rows<V, T>(g, m0, m1 - m0, k0, kc, Tile::kRowStride, a_block);

      Finish<S> finish{};
      finish.first = k0 == 0;
      finish.last = k0 + kc >= g.k;

      for (int64_t n = block.n0; n < block.n1; n += NR) {
        const int run_count = find_runs<kPackMask, NR>(g, n, k0, kc, runs);
        if (run_count == 0 && !finish.first && !finish.last) continue;
        for (int r = 0; r < run_count; ++r) {
          if constexpr (kPass == Pass::forward)
            pack_b_transposed<V, kPackMask, T, NV>(g, n, k0, runs[r], b_panel);
          else
            pack_b_rows<V, kPackMask, T, NV>(g, n, k0, runs[r], b_panel);
        }
        const int width = (int)min64(NR, block.n1 - n);
        if constexpr (kDirect) finish.bias = g.bias ? (const S*)g.bias + n : nullptr;
        for (int64_t m = m0; m < m1; m += MR) {
          const int rows = (int)min64(MR, m1 - m);
          int tile_runs = run_count;
          if constexpr (kGrad) {
            finish.column = n;
            if constexpr (kMask == MaskKind::bits) {
              finish.bits = g.bits + m * g.bits_ld;
              finish.bits_ld = g.bits_ld;
              if (tile_is_empty<NR>(g, m, rows, n)) {
                if (!finish.last && !finish.first) continue;
                tile_runs = 0;  // writes the zeros
              }
            } else if constexpr (kDirect) {
              finish.factor = (const S*)g.factor + m * g.factor_ld + n;
              finish.factor_ld = g.factor_ld;
            }
          }
          const S* a = a_block + (kGrad ? (m - m0) * kc : (m - m0) * Tile::kRowStride);
          tile_rows<V, MR, NV, kRowStride, kStep>(rows, a, b_panel, runs, tile_runs,
                                                  c + (m - m0) * c_ld + (n - block.n0), c_ld, width, finish);
        }
      }
      k0 += KC;
    } while (k0 < g.k);

    if constexpr (!kDirect) round_block<V, T, kMask>(g, sums, c_ld, m0, m1, block.n0, block.n1);
  }
}

}  // namespace
}  // namespace maskfuse
