// weight_grad where many weights are active: four rows by kVectors vectors of the result in registers. Included by
// masked_linear_weight_grad.h only.
//
//   for a panel of the weight's rows
//     dY in fours of columns                                                   [four][batch][4], streamed from cache
//     for a strip of kLanes columns
//       for a chunk of the batch: the strip of X                               first-level cache
//         for a four of rows, or as many as registers hold: sums += dY x line, in vectors with an active weight
//         after the last chunk: sums, masked, to the result
#pragma once

#include "masked_linear_accumulate.h"

namespace maskfuse {
namespace {

// Where the sums of a four come from and go to.
template <class V>
struct Sums {
  typename V::S* kept;  // [4][kLanes], between chunks
  bool first, last;     // of the chunks: the sums start from zero; the result is written
};

// A vector of the result, masked.
template <class V, class T, MaskKind kMask>
static inline void store_masked(const MaskedGemm& g, int64_t row, int64_t column, int width, typename V::Reg sum) {
  if constexpr (kMask == MaskKind::bits) sum = V::keep(sum, mask_at(g.bits + row * g.bits_ld, column));
  if constexpr (kMask == MaskKind::factor)
    sum = V::mul(sum, V::load_n((const T*)g.factor + row * g.factor_ld + column, width));
  if constexpr (kMask == MaskKind::gate) {
    // sum * s for the weight, sum * w * s * (1 - s) for the scores.
    const auto scores = V::load_n((const T*)g.factor + row * g.factor_ld + column, width);
    const auto s = sigmoid<V>(scores), rest = sigmoid<V>(V::mul(scores, V::set1(-1)));  // 1 - s would cancel
    const auto w = V::load_n((const T*)g.weight + row * g.weight_ld + column, width);
    sum = V::mul(sum, s);
    V::store_n((T*)g.c_scores + row * g.c_scores_ld + column, V::mul(V::mul(sum, w), rest), width);
  }
  V::store_n((T*)g.c + row * g.c_ld + column, sum, width);
}

// sums[4 kFours][kLanes] += values[kFours][length][4] x lines[length][kLanes], in kCount of the vectors, of `used` rows
// from `row` on.
template <class V, class T, MaskKind kMask, int kFours, int kCount>
static inline void tile_vectors(const MaskedGemm& g, const Part& part, int64_t row, int used, int64_t column,
                                const typename V::S* values, const typename V::S* x, int length, const int* vector,
                                const Sums<V>& sums) {
  using Reg = typename V::Reg;
  constexpr int W = V::W, kLanes = Lanes<V>::kLanes, kRows = 4 * kFours;
  const int64_t pitch = 4 * g.k;  // between fours
  Reg sum[kRows][kCount];
  int64_t at[kCount];
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) at[v] = vector[v] * W;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) {
      sum[i][v] = sums.first ? V::zero() : V::load(sums.kept + i * kLanes + at[v]);
      // The result's rows lie a page apart: their lines are asked for while the sums are made.
      if (sums.last && i < used) __builtin_prefetch((const T*)g.c + (row + i) * g.c_ld + column + at[v], 1);
    }
  }
  for (int k = 0; k < length; ++k) {
    Reg line[kCount];
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) line[v] = V::load(x + k * kLanes + at[v]);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Reg w = V::set1(values[i / 4 * pitch + 4 * k + i % 4]);
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) sum[i][v] = V::fma(w, line[v], sum[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) {
      if (!sums.last)
        V::store(sums.kept + i * kLanes + at[v], sum[i][v]);
      else if (i < used)
        store_masked<V, T, kMask>(g, row + i, column + at[v], (int)min64(W, part.n1 - column - at[v]), sum[i][v]);
    }
  }
}

// Which of a strip's vectors have an active weight in the four rows from `row` on: one bit each.
template <class V, MaskKind kMask>
static inline uint32_t active_vectors(const MaskedGemm& g, const Part& part, int64_t row, int64_t column,
                                      int64_t wide) {
  uint32_t active = 0;
  const int64_t end = min64(row + 4, part.m1);
  for (int v = 0; v * V::W < wide; ++v) {
    uint32_t any = kMask != MaskKind::bits;
    if constexpr (kMask == MaskKind::bits)
      for (int64_t r = row; r < end; ++r) any |= mask_at(g.bits + r * g.bits_ld, column + v * V::W) & V::kAll;
    active |= (uint32_t)(any != 0) << v;
  }
  return active;
}

// Part: m up to kTiledRows rows, n whole strips.
template <class V, class T, MaskKind kMask>
static void tiled_task(const MaskedGemm& g, const Part& part) {
  using S = typename V::S;
  constexpr int W = V::W, kSteps = W / 4, kLanes = Lanes<V>::kLanes, kVectors = Lanes<V>::kVectors;
  constexpr int kMost = V::kRegisters / 8;  // vectors of four rows that registers hold
  const int64_t tall = part.m1 - part.m0, fours = ceil_div(tall, 4);
  S* const x = (S*)part.scratch;                 // [kTiledChunk][kLanes]
  S* const kept = x + kTiledChunk * kLanes;      // [rows][kLanes]
  S* const values = kept + kTiledRows * kLanes;  // [four][batch][4], whole vectors of rows
  for (int64_t k = 0; k < g.k; k += kSteps) {
    for (int64_t r = 0; r < tall; r += W) {
      typename V::Reg rows[kSteps];
      for (int j = 0; j < kSteps; ++j)
        rows[j] = k + j < g.k ? V::load_n((const T*)g.a + (k + j) * g.a_ld + part.m0 + r, (int)min64(W, tall - r))
                              : V::zero();
      V::transpose_fours(rows);
      for (int j = 0; j < kSteps; ++j)
        V::store_n(values + ((r / 4 + j) * g.k + k) * 4, rows[j], 4 * (int)min64(kSteps, g.k - k));
    }
  }
  for (int64_t n = part.n0; n < part.n1; n += kLanes) {
    const int64_t wide = min64(kLanes, part.n1 - n);
    int64_t k0 = 0;
    do {  // once even when there is no batch: zeros must be written
      const int length = (int)min64(kTiledChunk, g.k - k0);
      const bool first = k0 == 0, last = k0 + kTiledChunk >= g.k;
      for (int k = 0; k < length; ++k)
        for (int v = 0; v < kVectors; ++v) {
          const int width = (int)min64(W, wide - v * W);
          V::store(x + k * kLanes + v * W,
                   width > 0 ? V::load_n((const T*)g.b + (k0 + k) * g.b_ld + n + v * W, width) : V::zero());
        }
      for (int64_t f = 0; f < fours;) {
        const int64_t row = part.m0 + 4 * f;
        const uint32_t active = active_vectors<V, kMask>(g, part, row, n, wide);
        const int count = __builtin_popcount(active);
        // Few vectors leave registers to more rows, as many as have the same ones active: sums that do not wait.
        int together = 1;
        if (kMask == MaskKind::bits && count > 0)
          while (2 * together * count <= kMost && f + 2 * together <= fours) {
            bool same = true;
            for (int i = together; i < 2 * together; ++i)
              same &= active_vectors<V, kMask>(g, part, row + 4 * i, n, wide) == active;
            if (!same) break;
            together *= 2;
          }
        for (int i = 0; i < together; ++i) {
          // The strip's next rows of X, or the next strip's first ones, one for each four.
          const int64_t next_row = last ? f + i : k0 + kTiledChunk + f + i, next_column = last ? n + kLanes : n;
          if (next_row < g.k && f + i < kTiledChunk && next_column < part.n1)
            fetch<T>((const T*)g.b + next_row * g.b_ld + next_column, min64(kLanes, part.n1 - next_column));
        }
        const int used = (int)min64(4 * together, part.m1 - row);
        int vector[kVectors], listed = 0;
        for (int v = 0; v * W < wide; ++v) {
          if (active >> v & 1)
            vector[listed++] = v;
          else if (last)
            for (int i = 0; i < used; ++i)
              store_masked<V, T, MaskKind::none>(g, row + i, n + v * W, (int)min64(W, wide - v * W), V::zero());
        }
        const Sums<V> sums{kept + 4 * f * kLanes, first, last};
        for (int v = 0; v < count; v += kMost) {
          const auto run = [&](auto number_of_fours, auto number_of_vectors) {
            constexpr int kFours = decltype(number_of_fours)::value, kCount = decltype(number_of_vectors)::value;
            tile_vectors<V, T, kMask, kFours, kCount>(g, part, row, used, n, values + (f * g.k + k0) * 4, x, length,
                                                      vector + v, sums);
          };
          const int now = (int)min64(kMost, count - v);
          if constexpr (kMost == 4) {
            if (together == 4) run(Int<4>{}, Int<1>{});
            if (together == 2 && now == 2) run(Int<2>{}, Int<2>{});
            if (together == 1 && now == 3) run(Int<1>{}, Int<3>{});
            if (together == 1 && now == 4) run(Int<1>{}, Int<4>{});
          }
          if (together == 2 && now == 1) run(Int<2>{}, Int<1>{});
          if (together == 1 && now == 2) run(Int<1>{}, Int<2>{});
          if (together == 1 && now == 1) run(Int<1>{}, Int<1>{});
        }
        f += together;
      }
      k0 += kTiledChunk;
    } while (k0 < g.k);
  }
}

}  // namespace
}  // namespace maskfuse
