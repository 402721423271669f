// Tasks of a phase on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "buffer.h"

namespace maskfuse {

// Calls run(task, scratch) for tasks [0, tasks). Threads take them one by one, so that a task with more to do than
// others holds nobody up; each has `scratch_bytes` to itself.
template <class Run>
void run_tasks(int64_t tasks, size_t scratch_bytes, const Run& run) {
  if (tasks == 0) return;
  std::atomic<int64_t> next{0};
  std::atomic<bool> out_of_memory{false};
  const auto work = [&](int64_t, int64_t) {
    try {
      Buffer once;
      Buffer& buffer = scratch_bytes > kKeptBytes ? once : thread_scratch();
      void* const scratch = scratch_bytes > 0 ? buffer.get(scratch_bytes) : nullptr;
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) run(task, scratch);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  };
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  if (threads == 1)
    work(0, 1);
  else
    torch::stable::parallel_for(0, threads, 1, work);
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace maskfuse
