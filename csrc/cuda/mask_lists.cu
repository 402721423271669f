// A block makes the list of one group: its threads each look at the words of one block of weights.
#include "block_list.h"
#include "mask_lists.h"

namespace maskfuse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// A warp makes a word: lane l's bit is that of channel 32 word + l.
__global__ void __launch_bounds__(kThreads)
    by_taps_kernel(const uint32_t* __restrict__ bits, int64_t rows, int64_t taps, int64_t channels, int64_t words,
                   int64_t from_ld, uint32_t* __restrict__ to) {
  const int64_t total = rows * taps * words;
  for (int64_t i = (int64_t)blockIdx.x * kWarps + warp_index(); i < total; i += (int64_t)gridDim.x * kWarps) {
    const int64_t row = i / (taps * words), tap = i / words % taps, channel = i % words * 32 + lane_index();
    const int64_t column = channel * taps + tap;
    const uint32_t word = ballot(channel < channels && (bits[row * from_ld + column / 32] >> (column % 32) & 1));
    if (lane_index() == 0) to[i] = word;
  }
}

// Whether any weight of `height` rows and `width` words of a tap is active, from those that there are.
__device__ bool any_active(const uint32_t* bits, int64_t rows, int64_t taps, int64_t words, int64_t tap, int64_t row,
                           int64_t height, int64_t word, int64_t width) {
  const int64_t last_row = row + height < rows ? row + height : rows;
  const int64_t last_word = word + width < words ? word + width : words;
  uint32_t any = 0;
  for (int64_t r = row; r < last_row; ++r)
    for (int64_t w = word; w < last_word; ++w) any |= bits[(r * taps + tap) * words + w];
  return any != 0;
}

template <bool kOfRows>
__global__ void __launch_bounds__(kThreads)
    lists_kernel(const uint32_t* __restrict__ bits, int64_t rows, int64_t taps, int64_t words, int64_t tap_blocks,
                 int32_t* __restrict__ lists) {
  const int64_t group = blockIdx.x, blocks = taps * tap_blocks;
  const auto active = [&](int64_t block) {
    const int64_t tap = block / tap_blocks, in_tap = block % tap_blocks;
    return kOfRows ? any_active(bits, rows, taps, words, tap, group * kListGroup, kListGroup,
                                in_tap * (kListBlock / 32), kListBlock / 32)
                   : any_active(bits, rows, taps, words, tap, in_tap * kListBlock, kListBlock,
                                group * (kListGroup / 32), kListGroup / 32);
  };
  list_blocks<kThreads>(blocks, active, lists + group * (1 + blocks));
}

}  // namespace

cudaError_t mask_by_taps(const uint32_t* bits, int64_t rows, int64_t taps, int64_t channels, uint32_t* by_taps,
                         cudaStream_t stream) {
  const int64_t words = ceil_div(channels, 32);
  return launch(by_taps_kernel, grid_blocks(rows * taps * words, kWarps), kThreads, 0, stream, bits, rows, taps,
                channels, words, ceil_div(channels * taps, 32), by_taps);
}

cudaError_t mask_lists(const uint32_t* by_taps, int64_t rows, int64_t taps, int64_t channels, int32_t* of_rows,
                       int32_t* of_channels, cudaStream_t stream) {
  const int64_t words = ceil_div(channels, 32);
  const ListShape r = lists_of_rows(rows, taps, channels), c = lists_of_channels(rows, taps, channels);
  const cudaError_t error = launch(lists_kernel<true>, dim3((unsigned)r.groups), kThreads, kWarps * sizeof(int), stream,
                                   by_taps, rows, taps, words, ceil_div(channels, kListBlock), of_rows);
  if (error != cudaSuccess) return error;
  return launch(lists_kernel<false>, dim3((unsigned)c.groups), kThreads, kWarps * sizeof(int), stream, by_taps, rows,
                taps, words, ceil_div(rows, kListBlock), of_channels);
}

}  // namespace maskfuse::cuda
