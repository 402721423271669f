// Packing: operands copied into the order in which the register tile reads them, with the mask applied
// and half types widened on the way. Included by masked_linear_{avx2,avx512}.cpp only.
//
//   A panel   forward, input_grad   [row of the tile][kKBlock + pad]   a row's k values are contiguous
//             weight_grad           [k][MR]                            A is read transposed
//   B panel   every pass            [k][NR]                            one row of the tile a step
//
// Helpers live in an unnamed namespace and use nothing of the standard library: an inline function
// compiled here with AVX must never be the copy that the linker keeps for everybody.
#pragma once

#include "masked_linear.h"

namespace maskfuse {
namespace {

enum class MaskKind { bits, factor, none };

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A stretch of k, relative to the panel, in which the panel has an active weight.
struct Run {
  int32_t begin, end;
};

// One row of the masked matrix: its values and its part of the mask.
template <class T>
struct WeightRow {
  const T* value;
  const uint32_t* bits;
  const T* factor;
};

template <class T>
static inline WeightRow<T> weight_row(const MaskedGemm& g, int64_t row) {
  return {(const T*)g.b + row * g.b_ld, g.bits ? g.bits + row * g.bits_ld : nullptr,
          g.factor ? (const T*)g.factor + row * g.factor_ld : nullptr};
}

// Mask bits of columns [column, column + 32 - column % 32): W divides 32, so a vector never straddles words.
static inline uint32_t mask_at(const uint32_t* bits, int64_t column) { return bits[column >> 5] >> (column & 31); }

// W masked weights from `column` on, of which n are inside the matrix.
template <class V, MaskKind kMask, class T>
static inline typename V::Reg load_weight(const WeightRow<T>& row, int64_t column, int n) {
  if constexpr (kMask == MaskKind::bits) return V::load_bits(row.value + column, mask_at(row.bits, column), n);
  if constexpr (kMask == MaskKind::factor)
    return V::mul(V::load_n(row.value + column, n), V::load_n(row.factor + column, n));
  return V::load_n(row.value + column, n);
}

// Finds where a B panel has any active weight, in steps of 32 along k. Returns the number of runs.
template <MaskKind kMask, int NR>
static inline int find_runs(const MaskedGemm& g, int64_t n0, int64_t k0, int64_t kc, Run* runs) {
  if constexpr (kMask != MaskKind::bits) {
    runs[0] = {0, (int32_t)kc};
    return kc > 0;
  }
  int count = 0;
  const int64_t n1 = min64(n0 + NR, g.n);
  for (int64_t k = 0; k < kc; k += 32) {
    const int64_t end = min64(k + 32, kc);
    uint32_t any = 0;
    if (g.pass == Pass::forward) {
      for (int64_t n = n0; n < n1; ++n) any |= g.bits[n * g.bits_ld + ((k0 + k) >> 5)];
    } else {
      const uint32_t columns = NR == 32 ? ~0u : ((1u << (NR & 31)) - 1);
      for (int64_t i = k; i < end; ++i) any |= mask_at(g.bits + (k0 + i) * g.bits_ld, n0) & columns;
    }
    if (any == 0) continue;
    if (count > 0 && runs[count - 1].end == k)
      runs[count - 1].end = (int32_t)end;
    else
      runs[count++] = {(int32_t)k, (int32_t)end};
  }
  return count;
}

// Forward: rows n0.. of B become columns of the panel, W x W values at a time through registers.
template <class V, MaskKind kMask, class T, int NV>
static inline void pack_b_transposed(const MaskedGemm& g, int64_t n0, int64_t k0, Run run, typename V::S* panel) {
  constexpr int W = V::W;
  for (int j = 0; j < NV; ++j) {
    const int64_t n = n0 + j * W;
    const int rows = n < g.n ? (int)min64(W, g.n - n) : 0;
    for (int64_t k = run.begin; k < run.end; k += W) {
      typename V::Reg r[W];
      const int width = (int)min64(W, run.end - k);
      for (int i = 0; i < W; ++i)
        r[i] = i < rows ? load_weight<V, kMask>(weight_row<T>(g, n + i), k0 + k, width) : V::zero();
      V::transpose(r);
      // A run ends inside a vector only at the end of k; the panel has room for the rest.
      for (int i = 0; i < W; ++i) V::store(panel + (k + i) * (NV * W) + j * W, r[i]);
    }
  }
}

// input_grad, weight_grad: rows of B are rows of the panel.
template <class V, MaskKind kMask, class T, int NV>
static inline void pack_b_rows(const MaskedGemm& g, int64_t n0, int64_t k0, Run run, typename V::S* panel) {
  constexpr int W = V::W;
  for (int64_t k = run.begin; k < run.end; ++k) {
    const WeightRow<T> row = weight_row<T>(g, k0 + k);
    for (int j = 0; j < NV; ++j) {
      const int64_t n = n0 + j * W;
      const bool inside = n < g.n;
      const auto r = inside ? load_weight<V, kMask>(row, n, (int)min64(W, g.n - n)) : V::zero();
      V::store(panel + k * (NV * W) + j * W, r);
    }
  }
}

// Rows m0.. of A, one after another, each kRowStride long.
template <class V, class T>
static inline void pack_a_rows(const MaskedGemm& g, int64_t m0, int64_t rows, int64_t k0, int64_t kc,
                               int64_t row_stride, typename V::S* block) {
  for (int64_t m = 0; m < rows; ++m) {
    const T* from = (const T*)g.a + (m0 + m) * g.a_ld + k0;
    for (int64_t k = 0; k < kc; k += V::W)
      V::store(block + m * row_stride + k, V::load_n(from + k, (int)min64(V::W, kc - k)));
  }
}

// weight_grad: columns m0.. of A, MR at a time; the last panel is filled with zeros.
template <class V, class T, int MR>
static inline void pack_a_columns(const MaskedGemm& g, int64_t m0, int64_t rows, int64_t k0, int64_t kc,
                                  typename V::S* block) {
  for (int64_t m = 0; m < rows; m += MR) {
    for (int64_t k = 0; k < kc; ++k) {
      const T* from = (const T*)g.a + (k0 + k) * g.a_ld + m0 + m;
      typename V::S* to = block + m * kc + k * MR;
      const int width = (int)min64(MR, rows - m);
      for (int i = 0; i < MR; i += V::W) {
        const auto r = i < width ? V::load_n(from + i, width - i) : V::zero();
        V::store_n(to + i, r, MR - i);
      }
    }
  }
}

}  // namespace
}  // namespace maskfuse
