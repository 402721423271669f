// The register tile: MR rows x NV vectors of the result, and what happens to it when it is written.
// Included by masked_linear_{avx2,avx512}.cpp only.
#pragma once

#include "masked_linear_pack.h"

namespace maskfuse {
namespace {

// What a finished tile needs beyond its sums.
template <class S>
struct Finish {
  bool first;            // no earlier k block: C is overwritten, not added to
  bool last;             // no later k block: bias and mask are applied
  const S* bias;         // at the tile's first column, or null
  const uint32_t* bits;  // weight_grad, at the tile's first row; or null
  int64_t bits_ld;
  int64_t column;   // of the tile's first column, to find its bits
  const S* factor;  // weight_grad with a real-valued mask, at the tile's first element; or null
  int64_t factor_ld;
};

// C[MR, n] (+)= A panel x B panel over `runs`.
//   kRowStride, kStep   distance in A between rows, and between steps of k
template <class V, int MR, int NV, int kRowStride, int kStep>
static void tile(const typename V::S* a, const typename V::S* b, const Run* runs, int run_count, typename V::S* c,
                 int64_t c_ld, int n, const Finish<typename V::S>& finish) {
  constexpr int W = V::W, NR = NV * W;
  typename V::Reg acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[i][j] = V::zero();

  // C lies rows apart in memory, a page each where they are long: its lines are asked for now, and have come
  // when the sums are done.
  for (int i = 0; i < MR; ++i) {
    __builtin_prefetch(c + i * c_ld, 1);
    __builtin_prefetch(c + i * c_ld + n - 1, 1);
  }

  for (int run = 0; run < run_count; ++run) {
    const typename V::S* pa = a + (int64_t)runs[run].begin * kStep;
    const typename V::S* pb = b + (int64_t)runs[run].begin * NR;
    const typename V::S* const end = b + (int64_t)runs[run].end * NR;
#pragma GCC unroll 2
    for (; pb < end; pa += kStep, pb += NR) {
      typename V::Reg column[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) column[j] = V::load(pb + j * W);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const typename V::Reg x = V::set1(pa[i * kRowStride]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[i][j] = V::fma(x, column[j], acc[i][j]);
      }
    }
  }

#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const int width = n - j * W;
      if (width <= 0) break;
      typename V::S* to = c + i * c_ld + j * W;
      typename V::Reg r = acc[i][j];
      if (!finish.first) r = V::add(r, V::load_n(to, width));
      if (finish.last) {
        if (finish.bias) r = V::add(r, V::load_n(finish.bias + j * W, width));
        if (finish.bits) r = V::keep(r, mask_at(finish.bits + i * finish.bits_ld, finish.column + j * W));
        if (finish.factor) r = V::mul(r, V::load_n(finish.factor + i * finish.factor_ld + j * W, width));
      }
      if (width >= W)
        V::store(to, r);
      else
        V::store_n(to, r, width);
    }
  }
}

// The same with fewer rows than MR: walks down to the instantiation that fits.
template <class V, int MR, int NV, int kRowStride, int kStep, class... Rest>
static inline void tile_rows(int rows, Rest&&... rest) {
  if (rows == MR) return tile<V, MR, NV, kRowStride, kStep>(rest...);
  if constexpr (MR > 1) tile_rows<V, MR - 1, NV, kRowStride, kStep>(rows, rest...);
}

}  // namespace
}  // namespace maskfuse
