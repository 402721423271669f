// Activations with the batch in the lanes of a vector, and back.
// Included by masked_linear_{avx2,avx512}.cpp only.
//
// A block is kBlockBytes of batch: 64 floats or 32 doubles. In a block, column c is a line of `pitch` lanes:
//
//   [block][column][lane]          lane l of block b is row b * kLanes + l of the matrix
//
// Every block but the last has pitch kLanes; the last one has as many whole vectors (1, 2, 4 or 8) as it needs, and
// zeros in the lanes that have no row.
#pragma once

#include "masked_linear_weight.h"

namespace maskfuse {
namespace {

template <class V>
struct Lanes {
  static constexpr int kLanes = kBlockBytes / (int)sizeof(typename V::S);
  static constexpr int kVectors = kLanes / V::W;  // 4 in AVX-512, 8 in AVX2
  // Vectors of a block with `rows` rows.
  static int vectors(int64_t rows) {
    int vectors = 1;
    while (vectors * V::W < rows && vectors < kVectors) vectors *= 2;
    return vectors;
  }
};

// Calls f.template operator()<vectors>() for the vectors of a block.
template <class V, class F>
static inline void for_vectors(int vectors, F&& f) {
  if (vectors == 1) return f(Int<1>{});
  if (vectors == 2) return f(Int<2>{});
  if constexpr (Lanes<V>::kVectors == 4) {
    f(Int<4>{});
  } else {
    if (vectors == 4) return f(Int<4>{});
    f(Int<8>{});
  }
}

// lanes[c][row] = a[row][c] for columns [0, columns) of `rows` rows.
template <class V, class T>
static void to_lanes(const T* a, int64_t a_ld, int64_t rows, int64_t columns, int vectors, typename V::S* lanes) {
  constexpr int W = V::W;
  const int64_t pitch = (int64_t)vectors * W;
  // Along the rows, W of them at a time: as many streams as the hardware follows.
  for (int v = 0; v < vectors; ++v) {
    const int used = (int)min64(W, rows - v * W);
    for (int64_t c = 0; c < columns; c += W) {
      const int width = (int)min64(W, columns - c);
      typename V::Reg r[W];
      for (int i = 0; i < W; ++i) r[i] = i < used ? V::load_n(a + (v * W + i) * a_ld + c, width) : V::zero();
      V::transpose(r);
      typename V::S* to = lanes + c * pitch + v * W;
      for (int i = 0; i < W; ++i)
        if (i < width) V::store(to + i * pitch, r[i]);
    }
  }
}

// c[row][column] = lanes[column][row], rounded to T.
template <class V, class T>
static void from_lanes(const typename V::S* lanes, int vectors, int64_t rows, int64_t columns, T* c, int64_t c_ld) {
  constexpr int W = V::W;
  const int64_t pitch = (int64_t)vectors * W;
  for (int v = 0; v * W < rows; ++v) {
    const int used = (int)min64(W, rows - v * W);
    for (int64_t n = 0; n < columns; n += W) {
      typename V::Reg r[W];
      const int width = (int)min64(W, columns - n);
      for (int i = 0; i < W; ++i) r[i] = i < width ? V::load(lanes + (n + i) * pitch + v * W) : V::zero();
      V::transpose(r);
      T* to = c + v * W * c_ld + n;
      for (int i = 0; i < W; ++i)
        if (i < used) V::store_n(to + i * c_ld, r[i], width);
    }
  }
}

}  // namespace
}  // namespace maskfuse
