// Tasks of a phase on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "buffer.h"

namespace maskfuse {

inline constexpr int64_t kMostThreads = 256;

// Calls run(task, scratch) for tasks [0, tasks). Each thread begins with a part of its own, the same in every call:
// what one op wrote is in the cache of the core that will read it in the next. Then it helps others, task by task, so
// that one with more to do holds nobody up. Each has `scratch_bytes` to itself.
template <class Run>
void run_tasks(int64_t tasks, size_t scratch_bytes, const Run& run) {
  if (tasks == 0) return;
  const int64_t threads = std::min<int64_t>({tasks, torch::stable::get_num_threads(), kMostThreads});
  struct alignas(64) Next {  // the next task of a thread's part; a cache line of its own
    int64_t task;
  } next[kMostThreads];
  for (int64_t t = 0; t < threads; ++t) next[t].task = t * tasks / threads;
  std::atomic<bool> out_of_memory{false};
  const auto work = [&](int64_t self, int64_t) {
    try {
      Buffer once;
      Buffer& buffer = scratch_bytes > kKeptBytes ? once : thread_scratch();
      void* const scratch = scratch_bytes > 0 ? buffer.get(scratch_bytes) : nullptr;
      for (int64_t i = 0; i < threads; ++i) {
        const int64_t part = (self + i) % threads, end = (part + 1) * tasks / threads;
        std::atomic_ref<int64_t> at(next[part].task);
        for (int64_t task; (task = at.fetch_add(1, std::memory_order_relaxed)) < end;) run(task, scratch);
      }
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  };
  if (threads == 1)
    work(0, 1);
  else
    torch::stable::parallel_for(0, threads, 1, work);
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace maskfuse
