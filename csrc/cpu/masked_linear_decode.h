// Forward with at most kDecodeRows rows of A and weights that were packed before: only active ones are read.
// Included by masked_linear_{avx2,avx512}.cpp only.
//
//   bitmap   many active: 16 mask bits and an expanding load put packed weights to their columns
//   gather   few active, one or two rows of A: each weight's column says which element of A it meets
//   lines    few active, more rows: A lies in lanes, a weight multiplies one line
//
// Bound: the bytes of active weights and their bits or columns, read once.
#pragma once

#include "masked_linear_lanes.h"

namespace maskfuse {
namespace {

// How far ahead packed weights are asked for: they come from memory, in two streams, faster than the hardware follows.
static constexpr int64_t kAhead = 4096;

static inline void fetch_ahead(const void* from, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch((const char*)from + kAhead + b);
}

// One row of the weight, MB rows of A. x: A's rows as sums are kept, ld apart, readable to a whole vector.
template <class V, class T, int MB>
static inline void bitmap_row(const MaskedGemm& g, int64_t n, const typename V::S* x, int64_t ld, typename V::S* sums) {
  using Reg = typename V::Reg;
  constexpr int W = V::W, kSteps = 64 / W, kSets = MB == 1 ? 4 : 1;
  const uint32_t* const bits = g.bits + n * g.bits_ld;
  const T* v = (const T*)g.packed->values + g.packed->rows[n];
  Reg sum[kSets][MB];
#pragma GCC unroll 4
  for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 8
    for (int b = 0; b < MB; ++b) sum[s][b] = V::zero();
  const auto step = [&](uint32_t word, int64_t k, int set) __attribute__((always_inline)) {
    const Reg w = V::expand(V::load_n(v, W), word);
#pragma GCC unroll 8
    for (int b = 0; b < MB; ++b) sum[set][b] = V::fma(w, V::load(x + b * ld + k), sum[set][b]);
  };
  int64_t k = 0;
  for (; k + 64 <= g.k; k += 64) {
    const uint64_t word = (uint64_t)bits[(k >> 5) + 1] << 32 | bits[k >> 5];
    if (word == 0) continue;
    const T* const begin = v;
    fetch_ahead(v, 32 * sizeof(T));
#pragma GCC unroll 16
    for (int i = 0; i < kSteps; ++i) {
      // Where this vector's weights begin depends on the bits before it only, not on the vector before it.
      v = begin + (i == 0 ? 0 : __builtin_popcountll(word << (64 - i * W)));
      step((uint32_t)(word >> (i * W)), k + i * W, i % kSets);
    }
    v = begin + __builtin_popcountll(word);
  }
  for (; k < g.k; k += W) {
    uint32_t word = bits[k >> 5] >> (k & 31) & V::kAll;
    if (g.k - k < W) word &= (1u << (g.k - k)) - 1;
    step(word, k, 0);
    v += __builtin_popcount(word);
  }
#pragma GCC unroll 8
  for (int b = 0; b < MB; ++b) {
    Reg total = sum[0][b];
    for (int s = 1; s < kSets; ++s) total = V::add(total, sum[s][b]);
    sums[b] = V::sum(total);
  }
}

template <class V, class T>
static inline typename V::S gather_row(const MaskedGemm& g, int64_t n, const typename V::S* x) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  const int64_t begin = g.packed->rows[n], end = g.packed->rows[n + 1];
  const uint16_t* const columns = g.packed->columns;
  const T* const values = (const T*)g.packed->values;
  Reg sum[2] = {V::zero(), V::zero()};
  int64_t k = begin;
  for (; k + 2 * W <= end; k += 2 * W) {
    fetch_ahead(values + k, 2 * W * sizeof(T));
    fetch_ahead(columns + k, 2 * W * sizeof(uint16_t));
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s)
      sum[s] = V::fma(V::load_n(values + k + s * W, W), V::gather(x, columns + k + s * W, W), sum[s]);
  }
  for (; k < end; k += W) {
    const int width = (int)min64(W, end - k);
    sum[0] = V::fma(V::load_n(values + k, width), V::gather(x, columns + k, width), sum[0]);
  }
  return V::sum(V::add(sum[0], sum[1]));
}

// lines: [column][kVectors vectors].
template <class V, class T, int kVectors>
static inline void line_row(const MaskedGemm& g, int64_t n, const typename V::S* lines, typename V::S* sums) {
  using Reg = typename V::Reg;
  constexpr int W = V::W, kPitch = kVectors * W, kSets = 4 / kVectors;
  const int64_t begin = g.packed->rows[n], end = g.packed->rows[n + 1];
  const uint16_t* const columns = g.packed->columns;
  const T* const values = (const T*)g.packed->values;
  Reg sum[kSets][kVectors];
#pragma GCC unroll 4
  for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[s][v] = V::zero();
  const auto add = [&](int set, int64_t k) __attribute__((always_inline)) {
    const typename V::S* const line = lines + (int64_t)columns[k] * kPitch;
    const Reg w = V::set1(widen(values + k));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[set][v] = V::fma(w, V::load(line + v * W), sum[set][v]);
  };
  int64_t k = begin;
  for (; k + kSets <= end; k += kSets)
#pragma GCC unroll 4
    for (int s = 0; s < kSets; ++s) add(s, k + s);
  for (; k < end; ++k) add(0, k);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    Reg total = sum[0][v];
#pragma GCC unroll 4
    for (int s = 1; s < kSets; ++s) total = V::add(total, sum[s][v]);
    V::store(sums + v * W, total);
  }
}

template <class V, class T>
static inline void store_sum(const MaskedGemm& g, int64_t m, int64_t n, typename V::S sum) {
  if (g.bias) sum += widen((const T*)g.bias + n);
  V::store_n((T*)g.c + m * g.c_ld + n, V::set1(sum), 1);
}

// Part: m all rows, n some of the weight's. Scratch: A's rows as sums are kept, padded, or A in lanes.
template <class V, class T>
static void decode_task(const MaskedGemm& g, const Part& part) {
  using S = typename V::S;
  constexpr int W = V::W;
  S* const x = (S*)part.scratch;
  S sums[4 * W];
  if (g.packed->columns && g.m > kGatherRows) {
    const BatchBlock block = batch_block<V>(g.m, 0);
    to_lanes<V>((const T*)g.a, g.a_ld, g.m, g.k, block.vectors, x);
    for_vectors<V>(block.vectors, [&](auto number) {
      constexpr int kVectors = decltype(number)::value;
      if constexpr (kVectors <= 4) {  // kDecodeRows need no more
        for (int64_t n = part.n0; n < part.n1; ++n) {
          line_row<V, T, kVectors>(g, n, x, sums);
          for (int64_t m = 0; m < g.m; ++m) store_sum<V, T>(g, m, n, sums[m]);
        }
      }
    });
    return;
  }
  const int64_t ld = (g.k + W - 1) / W * W;
  for (int64_t m = 0; m < g.m; ++m)
    for (int64_t k = 0; k < g.k; k += W)
      V::store(x + m * ld + k, V::load_n((const T*)g.a + m * g.a_ld + k, (int)min64(W, g.k - k)));
  for (int64_t n = part.n0; n < part.n1; ++n) {
    if (g.packed->columns) {
      for (int64_t m = 0; m < g.m; ++m) store_sum<V, T>(g, m, n, gather_row<V, T>(g, n, x + m * ld));
      continue;
    }
    int64_t m = 0;
    for (; m + 4 <= g.m; m += 4) bitmap_row<V, T, 4>(g, n, x + m * ld, ld, sums + m);
    for (; m + 2 <= g.m; m += 2) bitmap_row<V, T, 2>(g, n, x + m * ld, ld, sums + m);
    for (; m < g.m; ++m) bitmap_row<V, T, 1>(g, n, x + m * ld, ld, sums + m);
    for (m = 0; m < g.m; ++m) store_sum<V, T>(g, m, n, sums[m]);
  }
}

}  // namespace
}  // namespace maskfuse
