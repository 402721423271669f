// Matrices, and weights under a mask, as sources of product.h and element_product.h.
//
// A weight of a convolution is a matrix [rows][taps][columns] whose taps stand side by side in a row; everything else
// has one tap. A block of the depth lies within a tap: block d is (tap d / tap_blocks, 64 columns or rows from
// 64 (d % tap_blocks) on).
#pragma once

#include <type_traits>

#include "product.h"

namespace maskfuse::cuda {

// What a block of the depth is, where the depth is one of `taps`, each cut into tap_blocks blocks.
struct DepthBlock {
  int tap;
  int64_t first;
};
__device__ __forceinline__ DepthBlock depth_block(int64_t block, int tap_blocks) {
  const int tap = (int)((uint32_t)block / (uint32_t)tap_blocks);
  return {tap, (block - (int64_t)tap * tap_blocks) * kDepth};
}

__device__ __forceinline__ int piece_count(int64_t left) {
  return left >= kPieceElements ? kPieceElements : left > 0 ? (int)left : 0;
}

// A row-major matrix. kAlongDepth: its columns are the depth, its rows those of C (or C's columns); else its rows are
// the depth.
template <class T, bool kAlongDepth_>
struct MatrixSource {
  static constexpr bool kAlongDepth = kAlongDepth_, kMasked = false;
  using Block = DepthBlock;
  struct Raw {};

  const T* data;
  int64_t ld, rows, columns;  // columns of one tap
  int tap_blocks;
  bool vectors;
  int64_t group_step;  // elements from a group's first to the next group's

  __device__ __forceinline__ MatrixSource in_group(int group) const {
    MatrixSource result = *this;
    result.data += group * group_step;
    return result;
  }

  // A row, or with the depth along rows a piece of a row: its first element and how many there are.
  struct Outer {
    const T* at;
    int64_t count;
  };

  __device__ __forceinline__ Block at(int64_t block) const { return depth_block(block, tap_blocks); }
  __device__ __forceinline__ Outer outer(int64_t index) const {
    if constexpr (kAlongDepth)
      return {data + index * ld, index < rows ? columns : 0};
    else
      return {data + index, columns - index};
  }
  __device__ __forceinline__ Span<T> span(Block block, const Outer& outer, int in_block) const {
    int64_t offset = block.tap * columns;
    int count;
    if constexpr (kAlongDepth) {
      const int64_t column = block.first + in_block;
      offset += column, count = piece_count(outer.count - column);
    } else {
      const int64_t row = block.first + in_block;
      offset += row * ld, count = row < rows ? piece_count(outer.count) : 0;
    }
    return {count > 0 ? outer.at + offset : data, count};
  }

  __device__ __forceinline__ T element(Block block, int64_t outer, int in_block) const {
    const int64_t inner = block.first + in_block, row = kAlongDepth ? outer : inner,
                  column = kAlongDepth ? inner : outer;
    return row < rows && column < columns ? data[row * ld + block.tap * columns + column] : T{};
  }
};

// Two elements' masks of sixteen bits from two bits of the mask.
__host__ __device__ constexpr uint32_t pair_mask(uint32_t bits) {
  return (bits & 1 ? 0xffffu : 0u) | (bits & 2 ? 0xffff0000u : 0u);
}

// The mask's bits of a weight [rows][taps][words of a tap].
struct WeightBits {
  const uint32_t* data;
  int64_t ld, tap_words, group_step;

  // Of eight columns from a multiple of eight on. Words are little-endian, as every device's are.
  __device__ __forceinline__ uint32_t eight(int64_t row, int tap, int64_t column) const {
    return ((const uint8_t*)(data + row * ld + tap * tap_words))[column / 8];
  }
  __device__ __forceinline__ bool one(int64_t row, int tap, int64_t column) const {
    return data[row * ld + tap * tap_words + column / 32] >> (column % 32) & 1;
  }
};

// The weight under a mask: of bits, or (kSoft) of factors, or scores whose sigmoid is the factor.
template <class T, bool kAlongDepth_, bool kSoft>
struct MaskedSource {
  static constexpr bool kAlongDepth = kAlongDepth_, kMasked = true;
  using Matrix = MatrixSource<T, kAlongDepth>;
  using Block = DepthBlock;
  struct Bits {
    Piece weight;
    uint32_t bits;
  };
  struct Factors {
    Piece weight, factor;
  };
  using Raw = std::conditional_t<kSoft, Factors, Bits>;

  Matrix weight;
  WeightBits bits;  // not kSoft
  Matrix factor;    // kSoft
  bool gate;

  __device__ __forceinline__ MaskedSource in_group(int group) const {
    MaskedSource result = *this;
    result.weight = weight.in_group(group);
    result.bits.data += group * bits.group_step;
    return result;
  }

  struct Outer {
    int64_t index;
    typename Matrix::Outer weight, factor;
  };

  __device__ __forceinline__ Block at(int64_t block) const { return weight.at(block); }
  __device__ __forceinline__ Outer outer(int64_t index) const {
    return {index, weight.outer(index), kSoft ? factor.outer(index) : typename Matrix::Outer{}};
  }

  __device__ __forceinline__ Raw load(Block block, const Outer& outer, int in_block) const {
    const Span<T> span = weight.span(block, outer.weight, in_block);
    Raw raw;
    raw.weight = read_piece(span, weight.vectors);
    if constexpr (kSoft) {
      raw.factor = read_piece(factor.span(block, outer.factor, in_block), factor.vectors);
    } else {
      const int64_t inner = block.first + in_block;
      raw.bits = span.count == 0
                     ? 0
                     : bits.eight(kAlongDepth ? outer.index : inner, block.tap, kAlongDepth ? inner : outer.index);
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

  __device__ __forceinline__ auto element(Block block, int64_t outer, int in_block) const {
    auto value = widened(weight.element(block, outer, in_block));
    if constexpr (kSoft) {
      const auto f = widened(factor.element(block, outer, in_block));
      value *= gate ? sigmoid(f) : f;
    } else {
      const int64_t inner = block.first + in_block, row = kAlongDepth ? outer : inner,
                    column = kAlongDepth ? inner : outer;
      if (row >= weight.rows || column >= weight.columns || !bits.one(row, block.tap, column)) value = 0;
    }
    return value;
  }
};

// Whether every row of a matrix begins at a multiple of 16 bytes.
inline bool vector_rows(const void* data, int64_t ld, int64_t element) {
  return (uintptr_t)data % kPieceBytes == 0 && ld * element % kPieceBytes == 0;
}

// Of one tap.
template <bool kAlongDepth, class T>
MatrixSource<T, kAlongDepth> matrix_source(const T* data, int64_t ld, int64_t rows, int64_t columns) {
  const int64_t blocks = ceil_div(kAlongDepth ? columns : rows, kDepth);
  return {data, ld, rows, columns, (int)(blocks > 0 ? blocks : 1), vector_rows(data, ld, sizeof(T)), 0};
}

}  // namespace maskfuse::cuda
