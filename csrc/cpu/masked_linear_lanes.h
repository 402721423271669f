// Activations with the batch in the lanes of a vector, and back.
// Included by masked_linear_{avx2,avx512}.cpp only.
//
// The batch is cut into units of 64 bytes, 16 floats or 8 doubles, and those into as few blocks of at most four as
// hold them, as even as can be. In a block, column c is a line of all its lanes:
//
//   [block][column][lane]          lane l of a block is row `begin + l` of the matrix
//
// Lanes past the last row hold zeros.
#pragma once

#include "masked_linear_weight.h"

namespace maskfuse {
namespace {

// One block of the batch.
struct BatchBlock {
  int64_t begin, rows;  // in the matrix; `begin` is also how many lanes lie before it
  int vectors;          // a line
};

template <class V>
static inline int64_t batch_blocks(int64_t batch) {
  return ceil_div(batch, kBlockUnits * kUnitBytes / (int)sizeof(typename V::S));
}

template <class V>
static inline BatchBlock batch_block(int64_t batch, int64_t block) {
  constexpr int64_t kUnit = kUnitBytes / (int)sizeof(typename V::S);
  const int64_t units = ceil_div(batch, kUnit), blocks = ceil_div(units, kBlockUnits);
  const int64_t begin = block * units / blocks, end = (block + 1) * units / blocks;
  return {begin * kUnit, min64(end * kUnit, batch) - begin * kUnit, (int)((end - begin) * kUnit / V::W)};
}

// Lanes of a whole block, and vectors of one.
template <class V>
struct Lanes {
  static constexpr int kLanes = kBlockUnits * kUnitBytes / (int)sizeof(typename V::S);
  static constexpr int kVectors = kLanes / V::W;  // 4 in AVX-512, 8 in AVX2
};

// Calls f(Int<vectors>) for the vectors of a block: one to four units.
template <class V, class F>
static inline void for_vectors(int vectors, F&& f) {
  constexpr int kUnit = Lanes<V>::kVectors / kBlockUnits;
  if (vectors == kUnit) return f(Int<kUnit>{});
  if (vectors == 2 * kUnit) return f(Int<2 * kUnit>{});
  if (vectors == 3 * kUnit) return f(Int<3 * kUnit>{});
  f(Int<4 * kUnit>{});
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
      for (int i = 0; i < W; ++i) {
        if (i >= used) break;
        // Rows lie pages apart, and what is written must be read first: it is asked for ahead.
        __builtin_prefetch(to + i * c_ld + 4 * W, 1);
        V::store_n(to + i * c_ld, r[i], width);
      }
    }
  }
}

}  // namespace
}  // namespace maskfuse
