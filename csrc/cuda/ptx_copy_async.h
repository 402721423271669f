// cp.async (sm_80): sixteen bytes from global to shared memory past the registers, waited for in groups.
#pragma once

#include "machine.h"

namespace maskfuse::cuda {

// The first `bytes` of 16 are copied, the rest is zero; with 0 nothing is read. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_async(void* shared, const void* global, int bytes) {
#ifdef MASKFUSE_SIMT
  simt::copy_async(shared, global, bytes);
#else
  const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#endif
}

// Ends a group: this thread's copies since the last one.
__device__ __forceinline__ void copy_commit() {
#ifdef MASKFUSE_SIMT
  simt::copy_commit();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most kLeft of this thread's groups are not there; other threads see them after a barrier.
template <int kLeft>
__device__ __forceinline__ void copy_wait() {
#ifdef MASKFUSE_SIMT
  simt::copy_wait(kLeft);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace maskfuse::cuda
