// masked_linear as three loops: no intrinsics, no blocking, no packing. It runs on every machine, and
// it is what the fast versions are to be read against.
#include <cmath>

#include "masked_linear.h"
#include "scalar_dtype.h"

namespace maskfuse {
namespace {

bool active(const MaskedGemm& g, int64_t row, int64_t column) {
  return g.bits[row * g.bits_ld + column / 32] >> (column % 32) & 1;
}

// The mask: bits, factors, or the sigmoid of scores.
enum class Mask { bits, factor, gate };

template <class T, Mask kMask>
void naive_task(const MaskedGemm& g, const Part& part) {
  using S = typename Accumulator<T>::type;
  constexpr bool kBits = kMask == Mask::bits;
  const T* a = (const T*)g.a;
  const T* b = (const T*)g.b;
  const T* factor = (const T*)g.factor;
  const bool grad = g.pass == Pass::weight_grad, forward = g.pass == Pass::forward;
  const auto scale = [&](int64_t row, int64_t column) {
    const S x = load(factor + row * g.factor_ld + column);
    return kMask == Mask::gate ? 1 / (1 + std::exp(-x)) : x;
  };
  // The element of B, and of its mask, that meets A's k-th in column n.
  const auto weight = [&](int64_t n, int64_t k) {
    const int64_t row = forward ? n : k, column = forward ? k : n;
    const S value = load(b + row * g.b_ld + column);
    if (grad) return value;
    if (kBits) return active(g, row, column) ? value : S(0);
    return value * scale(row, column);
  };
  for (int64_t m = part.m0; m < part.m1; ++m) {
    for (int64_t n = part.n0; n < part.n1; ++n) {
      S sum = 0;
      if (!grad || !kBits || active(g, m, n))
        for (int64_t k = 0; k < g.k; ++k) sum += S(load(grad ? a + k * g.a_ld + m : a + m * g.a_ld + k)) * weight(n, k);
      if (g.bias) sum += load((const T*)g.bias + n);
      if (grad && !kBits) sum *= scale(m, n);
      if (grad && kMask == Mask::gate)
        store((T*)g.c_scores + m * g.c_scores_ld + n, sum * S(load((const T*)g.weight + m * g.weight_ld + n)) /
                                                          (1 + std::exp(S(load(factor + m * g.factor_ld + n)))));
      store((T*)g.c + m * g.c_ld + n, sum);
    }
  }
}

}  // namespace

Task masked_linear_naive(const MaskedGemm& g) {
  static const Task table[4][3] = {
      {naive_task<float, Mask::bits>, naive_task<float, Mask::factor>, naive_task<float, Mask::gate>},
      {naive_task<double, Mask::bits>, naive_task<double, Mask::factor>, naive_task<double, Mask::gate>},
      {naive_task<Bf16, Mask::bits>, naive_task<Bf16, Mask::factor>, naive_task<Bf16, Mask::gate>},
      {naive_task<Fp16, Mask::bits>, naive_task<Fp16, Mask::factor>, naive_task<Fp16, Mask::gate>},
  };
  return table[(int)g.dtype][mask_index(g)];
}

}  // namespace maskfuse
