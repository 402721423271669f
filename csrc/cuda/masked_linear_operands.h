// The operands of masked_linear's products, as product.h and element_product.h take them.
#pragma once

#include "masked_linear.h"
#include "matrix_result.h"
#include "matrix_source.h"

namespace maskfuse::cuda {

// The matrix that holds A: its columns are the depth but in weight_grad, where its rows are.
template <class T, bool kAlongDepth>
MatrixSource<T, kAlongDepth> left_of(const MaskedGemm& g) {
  return matrix_source<kAlongDepth>((const T*)g.a, g.a_ld, kAlongDepth ? g.m : g.k, kAlongDepth ? g.k : g.m);
}
template <class T, bool kAlongDepth>
MatrixSource<T, kAlongDepth> right_of(const void* data, int64_t ld, const MaskedGemm& g) {
  return matrix_source<kAlongDepth>((const T*)data, ld, kAlongDepth ? g.n : g.k, kAlongDepth ? g.k : g.n);
}
template <class T, bool kAlongDepth, bool kSoft>
MaskedSource<T, kAlongDepth, kSoft> masked_right_of(const MaskedGemm& g) {
  return {right_of<T, kAlongDepth>(g.b, g.b_ld, g),
          {g.bits, g.bits_ld, 0, 0},
          right_of<T, kAlongDepth>(g.factor, g.factor_ld, g),
          g.gate};
}

template <class T>
MatrixResult<T> result_of(const MaskedGemm& g) {
  MatrixResult<T> result{};
  result.c = (T*)g.c, result.ld = g.c_ld, result.columns = g.n, result.rows = g.m;
  result.vectors = vector_rows(g.c, g.c_ld, sizeof(T));
  if (g.pass == Pass::forward) result.bias = (const T*)g.bias;
  if (g.pass == Pass::weight_grad) {
    result.bits = g.bits, result.bits_ld = g.bits_ld;
    if (!g.bits) result.factor = (const T*)g.factor;
    result.factor_ld = g.factor_ld, result.gate = g.gate;
    result.weight = (const T*)g.weight, result.weight_ld = g.weight_ld;
    result.scores = (T*)g.c_scores, result.scores_ld = g.c_scores_ld;
  }
  return result;
}

// The blocks of the depth. Those of weight_grad are rows of A and B, of which no mask says anything.
inline DepthBlocks depth_of(const MaskedGemm& g) {
  return {ceil_div(g.k, kDepth), g.pass == Pass::weight_grad ? nullptr : g.lists, false};
}

// Calls go(A, B) with the sources of a problem's operands.
template <class T, class Go>
cudaError_t with_operands(const MaskedGemm& g, const Go& go) {
  switch (g.pass) {
    case Pass::forward:
      return g.bits ? go(left_of<T, true>(g), masked_right_of<T, true, false>(g))
                    : go(left_of<T, true>(g), masked_right_of<T, true, true>(g));
    case Pass::input_grad:
      return g.bits ? go(left_of<T, true>(g), masked_right_of<T, false, false>(g))
                    : go(left_of<T, true>(g), masked_right_of<T, false, true>(g));
    default:
      return go(left_of<T, false>(g), right_of<T, false>(g.b, g.b_ld, g));
  }
}

}  // namespace maskfuse::cuda
