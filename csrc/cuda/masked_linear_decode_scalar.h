// masked_linear_decode without tensor cores: for float and double, the sums of splits, and the kernel to read.
#pragma once

#include "masked_linear_tiles.h"
#include "number.h"

namespace maskfuse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// What the kernels share. Sums go to `partial` [splits][m][rows] if it is not null, else with the bias to y.
template <class T>
struct DecodeArguments {
  using Sum = typename Accumulator<T>::type;
  const Piece* data;
  const uint32_t* offsets;
  int64_t rows, columns;
  int64_t slabs, split_slabs;  // of a strip, and of a split of it
  const T* x;
  int64_t x_ld;
  int m;
  const T* bias;
  T* y;
  int64_t y_ld;
  Sum* partial;

  __device__ __forceinline__ void store(int64_t row, int batch, Sum sum) const {
    if (row >= rows || batch >= m) return;
    if (partial)
      partial[((int64_t)blockIdx.y * m + batch) * rows + row] = sum;
    else
      y[batch * y_ld + row] = Rounded<T>::of(bias ? sum + widened(bias[row]) : sum);
  }
};

// float and double: a warp a strip, values straight from memory, four rows of x a block (blockIdx.z).
template <class T>
__global__ void __launch_bounds__(kThreads) decode_wide_kernel(const DecodeArguments<T> g) {
  constexpr int kBatches = 4;
  const int lane = lane_index(), first = (int)blockIdx.z * kBatches;
  const int64_t strip = (int64_t)blockIdx.x * kWarps + warp_index();
  if (strip >= strip_count(g.rows)) return;
  const int64_t begin = (int64_t)blockIdx.y * g.split_slabs;
  const int64_t end = begin + g.split_slabs < g.slabs ? begin + g.split_slabs : g.slabs;
  T sums[2][kBatches] = {};  // of rows lane / 4 and lane / 4 + 8, over this lane's columns
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t at = g.offsets[strip * g.slabs + i];
    if (g.offsets[strip * g.slabs + i + 1] == at) continue;
    const Piece* const slab = g.data + at;
    const T* values = (const T*)(slab + word_pieces(1));
    for (int w = 0; w < lane_words(1); ++w) {
      const uint32_t word = ((const uint32_t*)slab)[lane * lane_words(1) + w];
      const FieldCounts counts = field_counts(word);
#pragma unroll
      for (int f = 0; f < kWordFields; ++f) {
        const T* mine = values + after_units(counts.below, f, 1, 0);
#pragma unroll
        for (int j = 0; j < kFieldUnits; ++j) {
          if (!(word >> (f + 8 * j) & 1)) continue;
          const T value = *mine++;
          const T* const x = g.x + i * kSlabColumns + unit_place<1>(lane, kWordFields * w + f, j).column;
#pragma unroll
          for (int b = 0; b < kBatches; ++b)
            if (first + b < g.m) sums[f % 2][b] = multiply_add(value, x[(first + b) * g.x_ld], sums[f % 2][b]);
        }
        values += after_units(counts.all, f, 1, 0);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int b = 0; b < kBatches; ++b) {
      T sum = sums[h][b];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (lane % 4 == 0) g.store(strip * kStripRows + lane / 4 + 8 * h, first + b, sum);
    }
}

// The sums of all splits, in order.
template <class T>
__global__ void __launch_bounds__(kThreads) add_splits_kernel(const DecodeArguments<T> g, int splits) {
  const int64_t total = g.m * g.rows, stride = (int64_t)gridDim.x * kThreads;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < total; i += stride) {
    const int64_t batch = i / g.rows, row = i - batch * g.rows;
    auto sum = g.partial[i];
    for (int split = 1; split < splits; ++split) sum += g.partial[split * total + i];
    if (g.bias) sum += widened(g.bias[row]);
    g.y[batch * g.y_ld + row] = Rounded<T>::of(sum);
  }
}

// One thread an output. It walks over all units of its strip, since what came before tells where a value lies.
template <class T, int kUnit>
__global__ void __launch_bounds__(kThreads) decode_naive_kernel(const DecodeArguments<T> g) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= g.m * g.rows) return;
  const int64_t batch = i / g.rows, row = i - batch * g.rows, strip = row / kStripRows;
  typename Accumulator<T>::type sum = 0;
  for (int64_t slab = 0; slab < g.slabs; ++slab) {
    const uint32_t begin = g.offsets[strip * g.slabs + slab], end = g.offsets[strip * g.slabs + slab + 1];
    if (begin == end) continue;
    const uint32_t* const words = (const uint32_t*)(g.data + begin);
    const T* value = (const T*)(g.data + begin + word_pieces(kUnit));
    for (int f = 0; f < kWordFields * lane_words(kUnit); ++f)
#pragma unroll 1
      for (int lane = 0; lane < kWarp; ++lane)
#pragma unroll 1
        for (int j = 0; j < kFieldUnits; ++j) {
          const uint32_t word = words[lane * lane_words(kUnit) + f / kWordFields];
          if (!(word >> (f % kWordFields + 8 * j) & 1)) continue;
          const Place place = unit_place<kUnit>(lane, f, j);
          for (int e = 0; e < kUnit; ++e, ++value) {
            const int64_t column = slab * kSlabColumns + place.column + e;
            if (place.row == row % kStripRows && column < g.columns)
              sum = multiply_add(widened(*value), widened(g.x[batch * g.x_ld + column]), sum);
          }
        }
  }
  g.y[batch * g.y_ld + row] = Rounded<T>::of(g.bias ? sum + widened(g.bias[row]) : sum);
}

}  // namespace
}  // namespace maskfuse::cuda
