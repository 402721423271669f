// What kernels ask of the machine that runs them: the device, or the host's stand-in for it (csrc/simt), which tests
// run the same source on. PTX has headers of its own, ptx_*.h, one concept each.
#pragma once

#include <stdint.h>

#ifdef MASKFUSE_SIMT
#include "../simt/simt.h"
#else
#include <cuda_runtime.h>

#include "shared_limit.h"
#endif

namespace maskfuse::cuda {

inline constexpr int kWarp = 32;

// Shared memory beyond which a kernel must ask for it.
inline constexpr size_t kPlainShared = 48 << 10;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a grid-stride loop over `items`: its threads take several turns where there are more.
inline unsigned grid_blocks(int64_t items, int64_t a_block, int64_t most = 1 << 20) {
  const int64_t blocks = ceil_div(items, a_block);
  return (unsigned)(blocks < most ? blocks : most);
}

// Launches kernel(args...) and returns what the launch said. An empty grid is no launch.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                   [[maybe_unused]] cudaStream_t stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
#ifdef MASKFUSE_SIMT
  auto call = [&] { kernel(arguments...); };
  return simt::run(grid, dim3((unsigned)threads), shared_bytes, [](void* f) { (*(decltype(call)*)f)(); }, &call);
#else
  if (shared_bytes > kPlainShared) {
    const cudaError_t error = raise_shared_limit((const void*)kernel);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3((unsigned)threads), config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
#endif
}

// The block's dynamic shared memory.
__device__ __forceinline__ char* shared_memory() {
#ifdef MASKFUSE_SIMT
  return (char*)simt::shared();
#else
  extern __shared__ __align__(1024) char maskfuse_shared[];
  return maskfuse_shared;
#endif
}

// Its bytes, counted from the beginning of the block's.
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
#ifdef MASKFUSE_SIMT
  return (uint32_t)((const char*)shared - (const char*)simt::shared());
#else
  return (uint32_t)__cvta_generic_to_shared(shared);
#endif
}

__device__ __forceinline__ void sync_block() {
#ifdef MASKFUSE_SIMT
  simt::barrier();
#else
  __syncthreads();
#endif
}

// The `threads` of a part of the block, whole warps, meet; parts have barriers of their own, 1 to 15.
__device__ __forceinline__ void sync_part(int barrier, int threads) {
#ifdef MASKFUSE_SIMT
  simt::part_barrier(barrier, threads);
#else
  asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
#endif
}

// sync_block, and whether any thread's predicate holds.
__device__ __forceinline__ bool sync_block_or(bool predicate) {
#ifdef MASKFUSE_SIMT
  static bool any;
  any = false;
  simt::barrier();
  any = any || predicate;
  simt::barrier();
  const bool result = any;
  simt::barrier();
  return result;
#else
  return __syncthreads_or(predicate);
#endif
}

__device__ __forceinline__ int lane_index() { return (int)(threadIdx.x & (kWarp - 1)); }
__device__ __forceinline__ int warp_index() { return (int)(threadIdx.x / kWarp); }

// What a lane wrote before, the lanes of its warp read after.
__device__ __forceinline__ void sync_warp() {
#ifdef MASKFUSE_SIMT
  simt::exchange("sync_warp", nullptr, [](void* const*) {});
#else
  __syncwarp();
#endif
}

// Bit l of the result: whether lane l's predicate holds. Every lane of the warp takes part.
__device__ __forceinline__ uint32_t ballot(bool predicate) {
#ifdef MASKFUSE_SIMT
  struct Record {
    bool predicate;
    uint32_t result;
  } record{predicate, 0};
  simt::exchange("ballot", &record, [](void* const* lanes) {
    uint32_t bits = 0;
    for (int l = 0; l < kWarp; ++l) bits |= (uint32_t)((Record*)lanes[l])->predicate << l;
    for (int l = 0; l < kWarp; ++l) ((Record*)lanes[l])->result = bits;
  });
  return record.result;
#else
  return __ballot_sync(0xffffffffu, predicate);
#endif
}

// The value of lane `from`. Every lane of the warp takes part.
template <class T>
__device__ __forceinline__ T shuffle(T value, int from) {
#ifdef MASKFUSE_SIMT
  struct Record {
    T value, result;
    int from;
  } record{value, {}, from};
  simt::exchange("shuffle", &record, [](void* const* lanes) {
    for (int l = 0; l < kWarp; ++l)
      ((Record*)lanes[l])->result = ((Record*)lanes[((Record*)lanes[l])->from & (kWarp - 1)])->value;
  });
  return record.result;
#else
  return __shfl_sync(0xffffffffu, value, from);
#endif
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return shuffle(value, lane_index() ^ mask);
}

__host__ __device__ __forceinline__ int count_set(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

}  // namespace maskfuse::cuda
