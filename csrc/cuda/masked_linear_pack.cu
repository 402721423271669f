// Packing: a warp a slab, each lane its own units. Slabs are counted, their sizes summed by one block, and then
// each is written where it begins.
#include "masked_linear_pack.h"
#include "masked_linear_tiles.h"
#include "number.h"

namespace maskfuse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSumThreads = 1024;
constexpr int kSumWarps = kSumThreads / kWarp;

struct Mask {
  const uint32_t* bits;
  int64_t rows, columns;

  // Bits past the last column are not trusted to be zero.
  __device__ bool active(int64_t row, int64_t column) const {
    return row < rows && column < columns && (bits[row * ceil_div(columns, 32) + column / 32] >> (column % 32) & 1);
  }
};

// Word `word` of this lane, of the slab whose first weight is (row, column).
template <int kUnit>
__device__ uint32_t slab_word(const Mask& mask, int64_t row, int64_t column, int word) {
  uint32_t bits = 0;
  for (int f = 0; f < kWordFields; ++f)
    for (int j = 0; j < kFieldUnits; ++j) {
      const Place at = unit_place<kUnit>(lane_index(), kWordFields * word + f, j);
      bool any = false;
#pragma unroll
      for (int e = 0; e < kUnit; ++e) any |= mask.active(row + at.row, column + at.column + e);
      bits |= (uint32_t)any << (f + 8 * j);
    }
  return bits;
}

template <int kUnit>
__global__ void __launch_bounds__(kThreads)
    count_kernel(Mask mask, int64_t slabs, int64_t slabs_across, int element_bytes, uint32_t* __restrict__ pieces) {
  const int64_t stride = (int64_t)gridDim.x * kWarps;
  for (int64_t i = (int64_t)blockIdx.x * kWarps + warp_index(); i < slabs; i += stride) {
    const int64_t strip = i / slabs_across, across = i - strip * slabs_across;
    uint32_t active = 0;
    for (int w = 0; w < lane_words(kUnit); ++w)
      active += (uint32_t)count_set(slab_word<kUnit>(mask, strip * kStripRows, across * kSlabColumns, w));
    active = sum_to_lane(active);
    if (lane_index() == kWarp - 1) pieces[i] = (uint32_t)slab_pieces(active, kUnit, element_bytes);
  }
}

// counts[0 .. n) become the sums of those before them, counts[n] the sum of all, counts[n + 1] the largest.
__global__ void __launch_bounds__(kSumThreads) sum_kernel(uint32_t* counts, int64_t n) {
  uint32_t* const of_warps = (uint32_t*)shared_memory();  // [kSumWarps] sums
  uint32_t* const largest = of_warps + kSumWarps;         // [kSumThreads]
  uint32_t before = 0, most = 0;
  for (int64_t first = 0; first < n; first += kSumThreads) {
    const int64_t i = first + threadIdx.x;
    const uint32_t mine = i < n ? counts[i] : 0;
    most = mine > most ? mine : most;
    const uint32_t to_mine = sum_to_lane(mine);
    if (lane_index() == kWarp - 1) of_warps[warp_index()] = to_mine;
    sync_block();
    uint32_t here = before;
    for (int w = 0; w < kSumWarps; ++w) {
      if (w < warp_index()) here += of_warps[w];
      before += of_warps[w];
    }
    if (i < n) counts[i] = here + to_mine - mine;
    sync_block();
  }
  largest[threadIdx.x] = most;
  sync_block();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSumThreads; ++i) most = largest[i] > most ? largest[i] : most;
    counts[n] = before;
    counts[n + 1] = most;
  }
}

template <class T, int kUnit>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(Mask mask, const T* __restrict__ weight, int64_t weight_ld, int64_t slabs, int64_t slabs_across,
                const uint32_t* __restrict__ offsets, Piece* __restrict__ data) {
  constexpr int kWords = lane_words(kUnit), kPieceElements = kPieceBytes / (int)sizeof(T);
  const int lane = lane_index();
  const int64_t stride = (int64_t)gridDim.x * kWarps;
  for (int64_t i = (int64_t)blockIdx.x * kWarps + warp_index(); i < slabs; i += stride) {
    const uint32_t pieces = offsets[i + 1] - offsets[i];
    if (pieces == 0) continue;
    const int64_t strip = i / slabs_across, across = i - strip * slabs_across;
    const int64_t row = strip * kStripRows, column = across * kSlabColumns;
    Piece* const slab = data + offsets[i];
    T* const values = (T*)(slab + word_pieces(kUnit));
    uint32_t base = 0;  // in elements
    for (int w = 0; w < kWords; ++w) {
      const uint32_t word = slab_word<kUnit>(mask, row, column, w);
      ((uint32_t*)slab)[lane * kWords + w] = word;
      const FieldCounts counts = field_counts(word);
#pragma unroll
      for (int f = 0; f < kWordFields; ++f) {
        const uint32_t bits = field_bits(word, f), at = after_units(counts.below, f, kUnit, base);
        for (int j = 0; j < kFieldUnits; ++j) {
          if (!(bits >> (8 * j) & 1)) continue;
          const Place place = unit_place<kUnit>(lane, kWordFields * w + f, j);
          T* const to = values + after_bits(bits, j, kUnit, at);
#pragma unroll
          for (int e = 0; e < kUnit; ++e) {
            const int64_t r = row + place.row, c = column + place.column + e;
            to[e] = mask.active(r, c) ? weight[r * weight_ld + c] : T{};
          }
        }
        base = after_units(counts.all, f, kUnit, base);
      }
    }
    static_assert(kPieceElements <= kWarp);
    if (base + (uint32_t)lane < (pieces - word_pieces(kUnit)) * kPieceElements) values[base + (uint32_t)lane] = T{};
  }
}

template <class T, int kUnit>
cudaError_t pack(const Mask& mask, const void* weight, int64_t weight_ld, const uint32_t* offsets, void* data,
                 cudaStream_t stream) {
  const int64_t slabs = decode_slabs(mask.rows, mask.columns);
  return launch(pack_kernel<T, kUnit>, grid_blocks(slabs, kWarps), kThreads, 0, stream, mask, (const T*)weight,
                weight_ld, slabs, slabs_a_strip(mask.columns), offsets, (Piece*)data);
}

}  // namespace

// Estimates from the machine code for sm_90a, not measurements: 16 x 16 single weights take a warp 44 instructions and
// the multiprocessor's shared memory 12 cycles (15 with half of them active, for bank conflicts), pairs 33 and 6. On
// 132 multiprocessors at 1.98 GHz, reading them at 4.8 TB/s leaves time for
//
//   masked   50 %                         70 %                         90 %
//   single   63 instructions, 16 cycles   40 instructions, 10 cycles   18 instructions, 5 cycles
//   pairs    87 instructions, 22 cycles   60 instructions, 15 cycles   25 instructions, 6 cycles
//
// so that single weights are bound by memory at 50 %, by both about alike at 70 %, and by decoding beyond. There pairs
// take more bytes, but three quarters of the work; the two meet near 17 % active.
int decode_unit(Dtype dtype, int64_t active, int64_t weights) {
  constexpr int64_t kPercent = 17;
  return dtype_size(dtype) == 2 && active < weights / 100 * kPercent ? 2 : 1;
}

int64_t decode_slabs(int64_t rows, int64_t columns) { return strip_count(rows) * slabs_a_strip(columns); }

cudaError_t decode_count(const uint32_t* bits, int64_t rows, int64_t columns, Dtype dtype, int unit, uint32_t* offsets,
                         cudaStream_t stream) {
  const Mask mask{bits, rows, columns};
  const int64_t slabs = decode_slabs(rows, columns), across = slabs_a_strip(columns);
  if (slabs > UINT32_MAX / slab_pieces(slab_units(unit), unit, dtype_size(dtype))) return cudaErrorInvalidValue;
  const cudaError_t error = launch(unit == 1 ? count_kernel<1> : count_kernel<2>, grid_blocks(slabs, kWarps), kThreads,
                                   0, stream, mask, slabs, across, (int)dtype_size(dtype), offsets);
  if (error != cudaSuccess) return error;
  return launch(sum_kernel, 1, kSumThreads, (kSumWarps + kSumThreads) * sizeof(uint32_t), stream, offsets, slabs);
}

cudaError_t decode_pack(const uint32_t* bits, const void* weight, int64_t weight_ld, int64_t rows, int64_t columns,
                        Dtype dtype, int unit, const uint32_t* offsets, void* data, cudaStream_t stream) {
  const Mask mask{bits, rows, columns};
  switch (dtype) {
    case Dtype::f32:
      return pack<float, 1>(mask, weight, weight_ld, offsets, data, stream);
    case Dtype::f64:
      return pack<double, 1>(mask, weight, weight_ld, offsets, data, stream);
    case Dtype::bf16:
      return (unit == 1 ? pack<Bf16, 1> : pack<Bf16, 2>)(mask, weight, weight_ld, offsets, data, stream);
    case Dtype::f16:
      return (unit == 1 ? pack<Fp16, 1> : pack<Fp16, 2>)(mask, weight, weight_ld, offsets, data, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace maskfuse::cuda
