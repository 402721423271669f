// Operands and results of masked_linear's products, as product.h and element_product.h take them.
#pragma once

#include <type_traits>

#include "masked_linear.h"
#include "product.h"

namespace maskfuse::cuda {

// A row-major matrix. kAlongDepth: its columns are the depth, its rows those of C (or C's columns); else its rows are
// the depth.
template <class T, bool kAlongDepth_>
struct MatrixSource {
  static constexpr bool kAlongDepth = kAlongDepth_, kMasked = false;
  struct Raw {};
  struct Block {
    int64_t first;
  };

  const T* data;
  int64_t ld, rows, columns;
  bool vectors;

  __device__ __forceinline__ Block at(int64_t block) const { return {block * kDepth}; }
  __device__ __forceinline__ Span<T> span(Block block, int64_t row, int64_t column) const {
    (kAlongDepth ? column : row) += block.first;
    const int64_t left = columns - column;
    if (row >= rows || left <= 0) return {data, 0};
    return {data + row * ld + column, left < kPieceElements ? (int)left : kPieceElements};
  }

  // One element, for element_product.h.
  __device__ __forceinline__ T element(int64_t outer, int64_t depth) const {
    const int64_t row = kAlongDepth ? outer : depth, column = kAlongDepth ? depth : outer;
    return row < rows && column < columns ? data[row * ld + column] : T{};
  }
};

// Two elements' masks of sixteen bits from two bits of the mask.
__host__ __device__ constexpr uint32_t pair_mask(uint32_t bits) {
  return (bits & 1 ? 0xffffu : 0u) | (bits & 2 ? 0xffff0000u : 0u);
}

// Bits are read eight at a time: words are little-endian, as every device's are.
__device__ __forceinline__ uint32_t eight_bits(const uint32_t* bits, int64_t ld, int64_t row, int64_t column) {
  return ((const uint8_t*)(bits + row * ld))[column / 8];
}
__device__ __forceinline__ bool bit_at(const uint32_t* bits, int64_t ld, int64_t row, int64_t column) {
  return bits[row * ld + column / 32] >> (column % 32) & 1;
}

// The weight under a mask: of bits, or (kSoft) of factors, or scores whose sigmoid is the factor.
template <class T, bool kAlongDepth_, bool kSoft>
struct MaskedSource {
  static constexpr bool kAlongDepth = kAlongDepth_, kMasked = true;
  using Block = typename MatrixSource<T, kAlongDepth>::Block;
  struct Bits {
    Piece weight;
    uint32_t bits;
  };
  struct Factors {
    Piece weight, factor;
  };
  using Raw = std::conditional_t<kSoft, Factors, Bits>;

  MatrixSource<T, kAlongDepth> weight;
  const uint32_t* bits;
  int64_t bits_ld;
  MatrixSource<T, kAlongDepth> factor;
  bool gate;
  bool vectors;

  __device__ __forceinline__ Block at(int64_t block) const { return weight.at(block); }

  __device__ __forceinline__ Raw load(Block block, int64_t row, int64_t column) const {
    const Span<T> span = weight.span(block, row, column);
    Raw raw;
    raw.weight = read_piece(span, weight.vectors);
    if constexpr (kSoft) {
      raw.factor = read_piece(factor.span(block, row, column), factor.vectors);
    } else {
      (kAlongDepth ? column : row) += block.first;
      raw.bits = span.count > 0 ? eight_bits(bits, bits_ld, row, column) : 0;
    }
    return raw;
  }

  __device__ __forceinline__ Piece finish(const Raw& raw) const {
    Piece result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t w = raw.weight.word[i];
      if constexpr (kSoft) {
        const uint32_t f = raw.factor.word[i];
        float low = low_of<T>(f), high = high_of<T>(f);
        if (gate) low = sigmoid(low), high = sigmoid(high);
        result.word[i] = pair_of<T>(low_of<T>(w) * low, high_of<T>(w) * high);
      } else {
        result.word[i] = w & pair_mask(raw.bits >> 2 * i);
      }
    }
    return result;
  }

  __device__ __forceinline__ auto element(int64_t outer, int64_t depth) const {
    auto value = widened(weight.element(outer, depth));
    const int64_t row = kAlongDepth ? outer : depth, column = kAlongDepth ? depth : outer;
    if constexpr (kSoft) {
      const auto f = widened(factor.element(outer, depth));
      value *= gate ? sigmoid(f) : f;
    } else {
      if (row >= weight.rows || column >= weight.columns || !bit_at(bits, bits_ld, row, column)) value = 0;
    }
    return value;
  }
};

// Where sums go: with a bias (forward), or masked (weight_grad).
template <class T>
struct LinearResult {
  using Sum = typename Accumulator<T>::type;

  T* c;
  int64_t ld, rows, columns;
  bool vectors;
  const T* bias;  // or null
  // weight_grad, else null: bits, or factors, or with `gate` scores, where `scores` takes their gradient.
  const uint32_t* bits;
  int64_t bits_ld;
  const T* factor;
  int64_t factor_ld;
  bool gate;
  const T* weight;
  int64_t weight_ld;
  T* scores;
  int64_t scores_ld;

  // Whether the mask leaves anything of a tile; every thread of the block asks.
  __device__ __forceinline__ bool wanted(int64_t row, int64_t column, int height, int width) const {
    if (!bits) return true;
    const int words = width / 32;
    bool any = false;
    for (int i = (int)threadIdx.x; i < height * words; i += (int)blockDim.x) {
      const int64_t r = row + i / words, word = column / 32 + i % words;
      if (r < rows && word < bits_ld) any = any || bits[r * bits_ld + word] != 0;
    }
    return sync_block_or(any);
  }
  // One element as it is stored.
  __device__ __forceinline__ T finished(int64_t row, int64_t column, Sum sum) const {
    if (bias) sum += widened(bias[column]);
    if (bits && !bit_at(bits, bits_ld, row, column)) sum = 0;
    if (factor) {
      const Sum f = widened(factor[row * factor_ld + column]);
      if (gate) {
        const Sum open = sigmoid(f);
        if (scores)
          scores[row * scores_ld + column] =
              Rounded<T>::of(sum * widened(weight[row * weight_ld + column]) * (open * sigmoid(-f)));
        sum *= open;
      } else {
        sum *= f;
      }
    }
    return Rounded<T>::of(sum);
  }

  __device__ __forceinline__ void write_one(int64_t row, int64_t column, Sum sum) const {
    c[row * ld + column] = finished(row, column, sum);
  }

  // Eight columns, of which those past the last are not there.
  __device__ __forceinline__ void write(int64_t row, int64_t column, const float* sums) const {
    if constexpr (sizeof(T) == 2) {
      if (vectors && column + kPieceElements <= columns) {
        Piece piece;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          piece.word[i] = (uint32_t)finished(row, column + 2 * i, sums[2 * i]).bits |
                          (uint32_t)finished(row, column + 2 * i + 1, sums[2 * i + 1]).bits << 16;
        *(Piece*)(c + row * ld + column) = piece;
        return;
      }
    }
    for (int e = 0; e < kPieceElements && column + e < columns; ++e) write_one(row, column + e, (Sum)sums[e]);
  }
};

// Whether every row of a matrix begins at a multiple of 16 bytes.
inline bool vector_rows(const void* data, int64_t ld, int64_t element) {
  return (uintptr_t)data % kPieceBytes == 0 && ld * element % kPieceBytes == 0;
}

// The matrix that holds A: its columns are the depth but in weight_grad, where its rows are.
template <class T, bool kAlongDepth>
MatrixSource<T, kAlongDepth> left_of(const MaskedGemm& g) {
  return {(const T*)g.a, g.a_ld, kAlongDepth ? g.m : g.k, kAlongDepth ? g.k : g.m, vector_rows(g.a, g.a_ld, sizeof(T))};
}
template <class T, bool kAlongDepth>
MatrixSource<T, kAlongDepth> right_of(const MaskedGemm& g) {
  return {(const T*)g.b, g.b_ld, kAlongDepth ? g.n : g.k, kAlongDepth ? g.k : g.n, vector_rows(g.b, g.b_ld, sizeof(T))};
}
template <class T, bool kAlongDepth, bool kSoft>
MaskedSource<T, kAlongDepth, kSoft> masked_right_of(const MaskedGemm& g) {
  MatrixSource<T, kAlongDepth> weight = right_of<T, kAlongDepth>(g), factor = weight;
  factor.data = (const T*)g.factor, factor.ld = g.factor_ld;
  factor.vectors = vector_rows(g.factor, g.factor_ld, sizeof(T));
  return {weight, g.bits, g.bits_ld, factor, g.gate, weight.vectors};
}

template <class T>
LinearResult<T> result_of(const MaskedGemm& g) {
  LinearResult<T> result{};
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
      return go(left_of<T, false>(g), right_of<T, false>(g));
  }
}

}  // namespace maskfuse::cuda
