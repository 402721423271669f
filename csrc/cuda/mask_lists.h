// What products on the device derive from a mask's bits: lists of the blocks that hold active weights, made on the
// device, of a size that depends on the mask's shape alone.
//
// A weight is [rows, taps, channels]; a linear layer has one tap. Its bits as masks have them are [rows][channels
// taps], taps innermost; `mask_by_taps` puts a tap's channels side by side, [rows][taps][words(channels)], which is the
// order that products walk in, and for one tap the order that is there.
//
//   lists of rows      for each 128 rows: which of the blocks (tap, 64 channels) have any
//   lists of channels  for each 128 channels: which of the blocks (tap, 64 rows) have any
//
// A list is [count, block, block, ...] in rising order, padded to 1 + all blocks; what lies behind `count` blocks is 0.
#pragma once

#include "stream.h"

namespace maskfuse::cuda {

inline constexpr int64_t kListGroup = 128, kListBlock = 64;

struct ListShape {
  int64_t groups, blocks;
};
inline ListShape lists_of_rows(int64_t rows, int64_t taps, int64_t channels) {
  return {(rows + kListGroup - 1) / kListGroup, taps * ((channels + kListBlock - 1) / kListBlock)};
}
inline ListShape lists_of_channels(int64_t rows, int64_t taps, int64_t channels) {
  return {(channels + kListGroup - 1) / kListGroup, taps * ((rows + kListBlock - 1) / kListBlock)};
}

cudaError_t mask_by_taps(const uint32_t* bits, int64_t rows, int64_t taps, int64_t channels, uint32_t* by_taps,
                         cudaStream_t stream);

// Both kinds of lists, from bits by taps.
cudaError_t mask_lists(const uint32_t* by_taps, int64_t rows, int64_t taps, int64_t channels, int32_t* of_rows,
                       int32_t* of_channels, cudaStream_t stream);

}  // namespace maskfuse::cuda
