// How the kernels read the masked matrix, a vector or an element at a time.
// Included by masked_linear_{avx2,avx512}.cpp only.
//
// Helpers live in an unnamed namespace and use nothing of the standard library: an inline function
// compiled here with AVX must never be the copy that the linker keeps for everybody.
#pragma once

#include "masked_linear.h"

namespace maskfuse {
namespace {

enum class MaskKind { bits, factor, gate, none };

// A number that a template takes as an argument.
template <int N>
struct Int {
  static constexpr int value = N;
};

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// 1 / (1 + exp(-x)). exp by 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2], within 2 units in the last place of a
// float (minimax coefficients of Cephes' expf); double takes libm's.
template <class V>
static inline typename V::Reg sigmoid(typename V::Reg x) {
  typename V::S lane[V::W];
  if constexpr (sizeof(typename V::S) == 8) {
    V::store(lane, x);
    for (int i = 0; i < V::W; ++i) lane[i] = 1 / (1 + __builtin_exp(-lane[i]));
    return V::load(lane);
  } else {
    (void)lane;
    using Reg = typename V::Reg;
    const auto c = [](float value) { return V::set1(value); };
    // Beyond these a float's sigmoid is 0 or 1, and 2^n would leave its range.
    const Reg t = V::min(V::max(V::mul(x, c(-1.0f)), c(-87.0f)), c(88.0f));
    const Reg n = V::round(V::mul(t, c(1.44269504088896341f)));
    const Reg r = V::fma(n, c(2.12194440e-4f), V::fma(n, c(-0.693359375f), t));
    constexpr float coefficients[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                                      5.0000001201e-1f};
    Reg p = c(1.9875691500e-4f);
    for (float a : coefficients) p = V::fma(p, r, c(a));
    p = V::add(V::fma(p, V::mul(r, r), r), c(1.0f));
    const Reg s = V::div(c(1.0f), V::add(c(1.0f), V::scale(p, n)));
    return V::keep_nan(x, s);
  }
}

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
  if constexpr (kMask == MaskKind::gate)
    return V::mul(V::load_n(row.value + column, n), sigmoid<V>(V::load_n(row.factor + column, n)));
  return V::load_n(row.value + column, n);
}

// One element in the type that sums are kept in.
static inline float widen(const float* p) { return *p; }
static inline double widen(const double* p) { return *p; }
static inline float widen(const Bf16* p) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(p->bits << 16))); }
static inline float widen(const Fp16* p) { return _cvtsh_ss(p->bits); }

// The sigmoid of one element.
template <class S>
static inline S sigmoid_of(S x) {
  return 1 / (1 + (sizeof(S) == 8 ? (S)__builtin_exp(-(double)x) : (S)__builtin_expf(-(float)x)));
}

}  // namespace
}  // namespace maskfuse
