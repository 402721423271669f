// Matrices as results of product.h and element_product.h.
#pragma once

#include "product.h"

namespace maskfuse::cuda {

// Where sums go: with a bias (forward), or masked (weight_grad).
template <class T>
struct MatrixResult {
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

  int64_t group_step;  // columns from a group's first to the next group's, of forward

  __device__ __forceinline__ MatrixResult in_group(int group) const {
    MatrixResult result = *this;
    result.c += group * group_step;
    if (bias) result.bias += group * group_step;
    return result;
  }

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
    if (bits && !(bits[row * bits_ld + column / 32] >> (column % 32) & 1)) sum = 0;
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

}  // namespace maskfuse::cuda
