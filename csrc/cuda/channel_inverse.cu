// A block inverts a list. The least position of each entry is a minimum, which needs no order. Where an entry occurs
// twice, one warp links positions from the list's end to its front, 32 at a time: the time is linear in the list's
// length whatever repeats, and the result does not depend on the order of threads.
#include "channel_entry.h"
#include "channel_inverse.h"
#include "collective.h"

namespace maskfuse::cuda {
namespace {

constexpr int kMostThreads = 512;

// Shared memory: one word, whether an entry occurs twice; then the table of first positions, where it fits.
constexpr int64_t kTableAt = 4, kTableWords = (int64_t)(kPlainShared / sizeof(uint32_t)) - kTableAt;

__device__ __forceinline__ void clear(uint32_t* table, int64_t size) {
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) table[i] = (uint32_t)kNoChannel;
}

// One warp. `table` has no positions yet; kNoChannel is the greatest unsigned number.
__device__ void link(const ChannelList& index, int64_t begin, int64_t count, uint32_t* table, int32_t* next) {
  const int lane = lane_index();
  const auto read = [&](int64_t p) { return p >= 0 && p < count ? listed(index, begin + p) : kNoChannel; };
  int64_t position = (count - 1) / kWarp * kWarp + lane;
  int32_t entry = read(position);
#pragma unroll 1
  for (; position - lane >= 0; position -= kWarp) {
    const int32_t next_entry = read(position - kWarp);  // under way meanwhile
    const uint32_t same = lanes_with(entry), before = same & ((1u << lane) - 1), after = same & ~before & ~(1u << lane);
    if (entry >= 0) next[position] = after ? (int32_t)position - lane + lowest_set(after) : (int32_t)table[entry];
    sync_warp();
    if (entry >= 0 && !before) table[entry] = (uint32_t)position;
    sync_warp();
    entry = next_entry;
  }
}

__global__ void __launch_bounds__(kMostThreads)
    inverse_kernel(ChannelInverse channels, ChannelInverse samples, int64_t lists) {
  auto* const repeated = (volatile uint32_t*)shared_memory();
  for (int64_t list = blockIdx.x; list < lists; list += gridDim.x) {
    const ChannelInverse v = list < channels.rows ? channels : samples;
    const int64_t row = list < channels.rows ? list : list - channels.rows, begin = row * v.count, size = v.index.size;
    int32_t *const first = v.first + row * size, *const next = v.next + begin;
    const bool fits = size <= kTableWords;
    uint32_t* const table = fits ? (uint32_t*)shared_memory() + kTableAt : (uint32_t*)first;
    clear(table, size);
    if (threadIdx.x == 0) *repeated = 0;
    sync_block();
    for (int64_t p = threadIdx.x; p < v.count; p += blockDim.x) {
      const int32_t entry = listed(v.index, begin + p);
      if (entry >= 0) atomic_min(table + entry, (uint32_t)p);
    }
    sync_block();
    for (int64_t p = threadIdx.x; p < v.count; p += blockDim.x) {
      const int32_t entry = listed(v.index, begin + p);
      if (entry >= 0 && table[entry] != (uint32_t)p) *repeated = 1;
      next[p] = kNoChannel;
    }
    sync_block();
    if (*repeated) {
      clear(table, size);
      sync_block();
      if (warp_index() == 0) link(v.index, begin, v.count, table, next);
      sync_block();
    }
    if (fits)
      for (int64_t i = threadIdx.x; i < size; i += blockDim.x) first[i] = (int32_t)table[i];
    sync_block();
  }
}

}  // namespace

cudaError_t channel_inverse(const ChannelInverse& channels, const ChannelInverse& samples, cudaStream_t stream) {
  // Short lists, of which there may be many, are for small blocks.
  const ChannelInverse both[] = {channels, samples};
  int64_t most = 1, table = 0;
  for (const ChannelInverse& v : both) {
    if (v.rows == 0) continue;
    const int64_t longest = v.count > v.index.size ? v.count : (int64_t)v.index.size;
    most = most > longest ? most : longest;
    if (v.index.size <= kTableWords && v.index.size > table) table = v.index.size;
  }
  const int64_t threads = most < kMostThreads ? ceil_div(most, kWarp) * kWarp : kMostThreads;
  const int64_t lists = channels.rows + samples.rows;
  return launch(inverse_kernel, grid_blocks(lists, 1), (int)threads, (size_t)(kTableAt + table) * sizeof(uint32_t),
                stream, channels, samples, lists);
}

}  // namespace maskfuse::cuda
