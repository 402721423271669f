// What surrounds a full product that a library computes: the masked weight in a block of its own, the mask on a
// finished gradient, and active channels moved together and apart. Included by masked_linear_{avx2,avx512}.cpp only.
#pragma once

#include "masked_linear_weight_grad.h"

namespace maskfuse {
namespace {

// Part: m rows and n columns of B, n0 a multiple of 32; `shared` is where the first of them goes, without gaps.
template <class V, class T, MaskKind kMask>
static void masked_copy_task(const MaskedGemm& g, const Part& part) {
  T* to = (T*)part.shared;
  for (int64_t r = part.m0; r < part.m1; ++r, to += part.n1 - part.n0) {
    const WeightRow<T> row = weight_row<T>(g, r);
    if constexpr (V::kCopiesHalves && sizeof(T) == 2 && kMask == MaskKind::bits) {
      for (int64_t c = part.n0; c < part.n1; c += 32)
        V::copy_halves(to + c - part.n0, row.value + c, mask_at(row.bits, c), (int)min64(32, part.n1 - c));
      continue;
    }
    for (int64_t c = part.n0; c < part.n1; c += V::W) {
      const int width = (int)min64(V::W, part.n1 - c);
      V::store_n(to + c - part.n0, load_weight<V, kMask>(row, c, width), width);
    }
  }
}

// The mask on rows m of C, in place, which hold the gradient of a full weight.
template <class V, class T, MaskKind kMask>
static void masked_result_task(const MaskedGemm& g, const Part& part) {
  for (int64_t r = part.m0; r < part.m1; ++r)
    for (int64_t c = part.n0; c < part.n1; c += V::W) {
      const int width = (int)min64(V::W, part.n1 - c);
      store_masked<V, T, kMask>(g, r, c, width, V::load_n((const T*)g.c + r * g.c_ld + c, width));
    }
}

// Rows [begin, end): their active columns move to the front.
template <class V, class T>
static void gather_columns(const MoveColumns& move, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* const from = (const T*)move.from + (move.rows ? move.rows[r] : r) * move.from_ld;
    T* to = (T*)move.to + r * move.to_ld;
    for (int64_t c = 0; c < move.columns; c += V::W) {
      const int width = (int)min64(V::W, move.columns - c);
      const uint32_t active = mask_at(move.active, c) & (width < V::W ? (1u << width) - 1 : V::kAll);
      if (active == 0) continue;
      const int count = __builtin_popcount(active);
      V::store_n(to, V::compress(V::load_n(from + c, width), active), count);
      to += count;
    }
  }
}

// The inverse: rows [begin, end) spread to where columns are active; the bias, or zeros, elsewhere.
template <class V, class T>
static void scatter_columns(const MoveColumns& move, int64_t begin, int64_t end) {
  const T* const bias = (const T*)move.bias;
  for (int64_t r = begin; r < end; ++r) {
    const T* from = (const T*)move.from + r * move.from_ld;
    T* const to = (T*)move.to + (move.rows ? move.rows[r] : r) * move.to_ld;
    for (int64_t c = 0; c < move.columns; c += V::W) {
      const int width = (int)min64(V::W, move.columns - c);
      const uint32_t active = mask_at(move.active, c) & (width < V::W ? (1u << width) - 1 : V::kAll);
      const int count = __builtin_popcount(active);
      auto value = count > 0 ? V::expand(V::load_n(from, count), active) : V::zero();
      if (bias) value = V::add(value, V::load_bits(bias + c, ~active, width));
      V::store_n(to + c, value, width);
      from += count;
    }
  }
}

}  // namespace
}  // namespace maskfuse
