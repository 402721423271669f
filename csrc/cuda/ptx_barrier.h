// mbarrier (sm_90): a barrier in shared memory that counts arrivals and bytes of bulk copies, phase after phase.
//
// A phase ends when all arrivals of `count` have come and all bytes that they announced; the next one begins at once.
// wait(parity) waits for the end of the phase of that parity, 0 for the first: of a barrier that nobody has come to,
// the phase of parity 1 has ended.
#pragma once

#include "machine.h"

namespace maskfuse::cuda {

class SharedBarrier {
 public:
  // By one thread. Others, and bulk copies, know of it after publish_barriers and a barrier of the block.
  __device__ __forceinline__ void begin(int count) {
#ifdef MASKFUSE_SIMT
    state_ = {(uint16_t)count, (uint16_t)count, 0};
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(address()), "r"(count) : "memory");
#endif
  }

  __device__ __forceinline__ void arrive() {
#ifdef MASKFUSE_SIMT
    arrived(0);
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(address()) : "memory");
#endif
  }

  // Arrives, and announces `bytes` of bulk copies that this phase waits for as well.
  __device__ __forceinline__ void arrive_with(int bytes) {
#ifdef MASKFUSE_SIMT
    arrived(bytes);
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(address()), "r"(bytes) : "memory");
#endif
  }

  __device__ __forceinline__ void wait(uint32_t parity) {
#ifdef MASKFUSE_SIMT
    simt::wait_until([this, parity] { return (state_.bytes_and_parity & 1u) != (parity & 1u); });
#else
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
        "@ended bra done;\n"
        "bra again;\n"
        "done:\n"
        "}\n" ::"r"(address()),
        "r"(parity)
        : "memory");
#endif
  }

  __device__ __forceinline__ uint32_t address() const { return shared_address(this); }

#ifdef MASKFUSE_SIMT
  // A bulk copy has written so many bytes.
  void copied(int bytes) {
    state_.bytes_and_parity -= 2 * bytes;
    turn();
  }

 private:
  struct State {
    uint16_t count, missing;
    int32_t bytes_and_parity;  // bytes announced and not copied, twice, and the phase's parity
  } state_;

  void arrived(int bytes) {
    if (state_.missing == 0xffff) throw std::runtime_error("a barrier in shared memory is used before it was begun");
    state_.bytes_and_parity += 2 * bytes;
    --state_.missing;
    turn();
    simt::pause();  // what follows may come after what others do now
  }
  void turn() {
    if (state_.missing > 0 || state_.bytes_and_parity >> 1 != 0) return;
    state_.missing = state_.count;
    state_.bytes_and_parity ^= 1;
  }
#else
 private:
  uint64_t state_;
#endif
};
static_assert(sizeof(SharedBarrier) == 8);

// Makes barriers that this thread has begun known to bulk copies.
__device__ __forceinline__ void publish_barriers() {
#ifndef MASKFUSE_SIMT
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

}  // namespace maskfuse::cuda
