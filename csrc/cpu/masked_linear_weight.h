// How the kernels read the masked matrix, a vector or an element at a time.
// Included by masked_linear_{avx2,avx512}.cpp only.
//
// Helpers live in an unnamed namespace and use nothing of the standard library: an inline function
// compiled here with AVX must never be the copy that the linker keeps for everybody.
#pragma once

#include "masked_linear.h"

namespace maskfuse {
namespace {

enum class MaskKind { bits, factor, none };

// A number that a template takes as an argument.
template <int N>
struct Int {
  static constexpr int value = N;
};

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

// Mask bits of columns [column, column + 32 - column % 32): where W divides 32, an aligned vector never straddles
// words.
static inline uint32_t mask_at(const uint32_t* bits, int64_t column) { return bits[column >> 5] >> (column & 31); }

// W masked weights from `column`, a multiple of W, on; n of them are inside the matrix.
template <class V, MaskKind kMask, class T>
static inline typename V::Reg load_weight(const WeightRow<T>& row, int64_t column, int n) {
  if constexpr (kMask == MaskKind::bits) return V::load_bits(row.value + column, mask_at(row.bits, column), n);
  if constexpr (kMask == MaskKind::factor)
    return V::mul(V::load_n(row.value + column, n), V::load_n(row.factor + column, n));
  return V::load_n(row.value + column, n);
}

// One element in the type that sums are kept in.
static inline float widen(const float* p) { return *p; }
static inline double widen(const double* p) { return *p; }
static inline float widen(const Bf16* p) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(p->bits << 16))); }
static inline float widen(const Fp16* p) { return _cvtsh_ss(p->bits); }

}  // namespace
}  // namespace maskfuse
