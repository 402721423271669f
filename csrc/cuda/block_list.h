// Lists of the blocks that a product visits: [count, block, block, ...] in rising order, 0 behind them.
#pragma once

#include "machine.h"

namespace maskfuse::cuda {

// A block of kThreads threads writes the list of the blocks below `blocks` for which active(block) holds: a ballot and
// the warps' counts put what the threads found in order. Takes shared memory for an int a warp.
template <int kThreads, class Active>
__device__ __forceinline__ void list_blocks(int64_t blocks, const Active& active, int32_t* list) {
  constexpr int kWarps = kThreads / kWarp;
  int* const found = (int*)shared_memory();  // by each warp
  int count = 0;
  for (int64_t first = 0; first < blocks; first += kThreads) {
    const int64_t block = first + threadIdx.x;
    const bool here = block < blocks && active(block);
    const uint32_t warp_found = ballot(here);
    if (lane_index() == 0) found[warp_index()] = count_set(warp_found);
    sync_block();
    int place = count;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp_index()) place += found[w];
      count += found[w];
    }
    if (here) list[1 + place + count_set(warp_found & ((1u << lane_index()) - 1))] = (int32_t)block;
    sync_block();  // before the counts change
  }
  if (threadIdx.x == 0) list[0] = count;
  for (int64_t i = count + (int64_t)threadIdx.x; i < blocks; i += kThreads) list[1 + i] = 0;
}

}  // namespace maskfuse::cuda
