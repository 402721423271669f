// Products with at most kFewRows rows of A: every weight is used a handful of times, so B is read once,
// in place, and the mask is applied in the load. Included by masked_linear_{avx2,avx512}.cpp only.
#pragma once

#include "masked_linear_weight.h"

namespace maskfuse {
namespace {

// Forward: C[MB, R] as dot products of MB rows of A with R masked rows of B.
template <class V, MaskKind kMask, class T, int MB, int R>
static inline void dot_tile(const MaskedGemm& g, int64_t m, int64_t n) {
  constexpr int W = V::W;
  typename V::Reg acc[R][MB];
  WeightRow<T> rows[R];
  for (int r = 0; r < R; ++r) {
    rows[r] = weight_row<T>(g, n + r);
    for (int b = 0; b < MB; ++b) acc[r][b] = V::zero();
  }
  const T* a = (const T*)g.a + m * g.a_ld;

  const auto step = [&](int64_t k, int width) __attribute__((always_inline)) {
    typename V::Reg w[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) w[r] = load_weight<V, kMask>(rows[r], k, width);
#pragma GCC unroll 8
    for (int b = 0; b < MB; ++b) {
      const typename V::Reg x = V::load_n(a + b * g.a_ld + k, width);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][b] = V::fma(x, w[r], acc[r][b]);
    }
  };
  int64_t k = 0;
  for (; k + 32 <= g.k; k += 32) {
    bool empty = false;
    if constexpr (kMask == MaskKind::bits) {
      uint32_t any = 0;
      for (int r = 0; r < R; ++r) any |= rows[r].bits[k >> 5];
      empty = any == 0;
    }
    if (empty) continue;
#pragma GCC unroll 8
    for (int i = 0; i < 32; i += W) step(k + i, W);
  }
  for (; k < g.k; k += W) step(k, (int)min64(W, g.k - k));

  for (int b = 0; b < MB; ++b) {
    for (int r = 0; r < R; ++r) {
      typename V::S sum = V::sum(acc[r][b]);
      if (g.bias) sum += V::first(V::load_n((const T*)g.bias + n + r, 1));
      V::store_n((T*)g.c + (m + b) * g.c_ld + n + r, V::set1(sum), 1);
    }
  }
}

// R rows of B for MB rows of A: enough independent sums to hide the latency of the multiply-add, few
// enough for the register file (16 registers in AVX2, 32 in AVX-512).
template <class V>
static constexpr int dot_rows(int mb) {
  return V::W * sizeof(typename V::S) == 64 ? (mb >= 8 ? 3 : mb >= 4 ? 4 : mb >= 2 ? 6 : 8) : (mb >= 4 ? 2 : 4);
}

template <class V, MaskKind kMask, class T, int MB>
static inline void dot_rows_of_a(const MaskedGemm& g, int64_t m, int64_t n0, int64_t n1) {
  constexpr int R = dot_rows<V>(MB);
  int64_t n = n0;
  for (; n + R <= n1; n += R) dot_tile<V, kMask, T, MB, R>(g, m, n);
  for (; n < n1; ++n) dot_tile<V, kMask, T, MB, 1>(g, m, n);
}

template <class V, MaskKind kMask, class T>
static void row_dot_task(const MaskedGemm& g, const Part& part) {
  constexpr int kMost = V::W * sizeof(typename V::S) == 64 ? 8 : 4;
  int64_t m = part.m0;
  for (; m + kMost <= part.m1; m += kMost) dot_rows_of_a<V, kMask, T, kMost>(g, m, part.n0, part.n1);
  if constexpr (kMost == 8)
    for (; m + 4 <= part.m1; m += 4) dot_rows_of_a<V, kMask, T, 4>(g, m, part.n0, part.n1);
  for (; m + 2 <= part.m1; m += 2) dot_rows_of_a<V, kMask, T, 2>(g, m, part.n0, part.n1);
  for (; m < part.m1; ++m) dot_rows_of_a<V, kMask, T, 1>(g, m, part.n0, part.n1);
}

// input_grad: sums of MB rows of C over a stretch of columns stay in the first-level cache while rows of B
// stream past them, kStreamSteps at a time, each in one long read.
constexpr int kStreamSteps = 4;

template <class V, MaskKind kMask, class T, int MB, int kSteps>
static inline void stream_steps(const MaskedGemm& g, int64_t m, int64_t k, int64_t n0, int64_t n1,
                                typename V::S* sums) {
  constexpr int W = V::W;
  constexpr int64_t kStretch = kStreamSums / MB;
  WeightRow<T> rows[kSteps];
  typename V::S x[kSteps][MB];
  for (int i = 0; i < kSteps; ++i) {
    rows[i] = weight_row<T>(g, k + i);
    for (int b = 0; b < MB; ++b) x[i][b] = V::first(V::load_n((const T*)g.a + (m + b) * g.a_ld + k + i, 1));
  }
  for (int64_t n = n0; n < n1; n += W) {
    const int width = (int)min64(W, n1 - n);
    if constexpr (kMask == MaskKind::bits) {
      uint32_t any = 0;
      for (int i = 0; i < kSteps; ++i) any |= mask_at(rows[i].bits, n) & V::kAll;
      if (any == 0) continue;
    }
    typename V::Reg w[kSteps];
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) w[i] = load_weight<V, kMask>(rows[i], n, width);
#pragma GCC unroll 8
    for (int b = 0; b < MB; ++b) {
      typename V::S* to = sums + b * kStretch + (n - n0);
      typename V::Reg r = V::load(to);
#pragma GCC unroll 4
      for (int i = 0; i < kSteps; ++i) r = V::fma(V::set1(x[i][b]), w[i], r);
      V::store(to, r);
    }
  }
}

template <class V, MaskKind kMask, class T, int MB>
static inline void stream_rows_of_a(const MaskedGemm& g, int64_t m, int64_t n0, int64_t n1, typename V::S* sums) {
  constexpr int W = V::W;
  constexpr int64_t kStretch = kStreamSums / MB;
  for (int64_t n = n0; n < n1; n += kStretch) {
    const int64_t end = min64(n + kStretch, n1);
    for (int64_t i = 0; i < kStreamSums; i += W) V::store(sums + i, V::zero());
    int64_t k = 0;
    for (; k + kStreamSteps <= g.k; k += kStreamSteps)
      stream_steps<V, kMask, T, MB, kStreamSteps>(g, m, k, n, end, sums);
    for (; k < g.k; ++k) stream_steps<V, kMask, T, MB, 1>(g, m, k, n, end, sums);
    for (int b = 0; b < MB; ++b)
      for (int64_t i = n; i < end; i += W)
        V::store_n((T*)g.c + (m + b) * g.c_ld + i, V::load(sums + b * kStretch + (i - n)), (int)min64(W, end - i));
  }
}

template <class V, MaskKind kMask, class T>
static void streamed_task(const MaskedGemm& g, const Part& part) {
  auto* const sums = (typename V::S*)part.scratch;
  int64_t m = part.m0;
  for (; m + 8 <= part.m1; m += 8) stream_rows_of_a<V, kMask, T, 8>(g, m, part.n0, part.n1, sums);
  for (; m + 4 <= part.m1; m += 4) stream_rows_of_a<V, kMask, T, 4>(g, m, part.n0, part.n1, sums);
  for (; m + 2 <= part.m1; m += 2) stream_rows_of_a<V, kMask, T, 2>(g, m, part.n0, part.n1, sums);
  for (; m < part.m1; ++m) stream_rows_of_a<V, kMask, T, 1>(g, m, part.n0, part.n1, sums);
}

}  // namespace
}  // namespace maskfuse
