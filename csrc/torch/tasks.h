// Tasks of a phase on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "buffer.h"

namespace maskfuse {

inline constexpr int64_t kMostThreads = 256;

// Looks at what others have done before a thread lets them run.
inline constexpr int kSpins = 2000;

inline constexpr int kMostPhases = 4;

// Calls run(phase, task, scratch) for the tasks of each phase, [0, tasks[phase]), those of a phase after all of the
// phase before. Each thread begins with a part of its own, the same in every call: what one op wrote is in the cache of
// the core that will read it in the next. Then it helps others, task by task, so that one with more to do holds nobody
// up. Each has `scratch_bytes` to itself.
//
// Threads are woken once for all phases. Between them a thread waits for tasks that others have begun, never for a
// thread that may not have started: those that run do what there is.
template <class Run>
void run_phases(const int64_t* tasks, int phases, size_t scratch_bytes, const Run& run) {
  int64_t most = 0;
  for (int phase = 0; phase < phases; ++phase) most = std::max(most, tasks[phase]);
  if (most == 0) return;
  const int64_t threads = std::min<int64_t>({most, torch::stable::get_num_threads(), kMostThreads});
  struct alignas(64) Next {  // the next task of a thread's part; a cache line of its own
    int64_t task;
  } next[kMostPhases][kMostThreads];
  for (int phase = 0; phase < phases; ++phase)
    for (int64_t t = 0; t < threads; ++t) next[phase][t].task = t * tasks[phase] / threads;
  std::atomic<int64_t> done[kMostPhases] = {};
  const auto phase_tasks = [&](int phase, int64_t self, void* scratch) {
    int64_t ended = 0;
    for (int64_t i = 0; i < threads; ++i) {
      const int64_t part = (self + i) % threads, end = (part + 1) * tasks[phase] / threads;
      std::atomic_ref<int64_t> at(next[phase][part].task);
      for (int64_t task; (task = at.fetch_add(1, std::memory_order_relaxed)) < end; ++ended) run(phase, task, scratch);
    }
    done[phase].fetch_add(ended, std::memory_order_acq_rel);
  };
  const auto work = [&](int64_t self, int64_t) {
    try {
      Buffer once;
      Buffer& buffer = scratch_bytes > kKeptBytes ? once : thread_scratch();
      void* const scratch = scratch_bytes > 0 ? buffer.get(scratch_bytes) : nullptr;
      for (int phase = 0; phase < phases; ++phase) {
        if (phase > 0)
          for (int spins = 0; done[phase - 1].load(std::memory_order_acquire) < tasks[phase - 1]; ++spins)
            if (spins > kSpins) std::this_thread::yield();
        phase_tasks(phase, self, scratch);
      }
    } catch (const std::bad_alloc&) {
      // Others do its part, if they can.
    }
  };
  if (threads == 1)
    work(0, 1);
  else
    torch::stable::parallel_for(0, threads, 1, work);
  if (done[phases - 1] < tasks[phases - 1]) throw std::bad_alloc();
}

// The same for one phase: run(task, scratch).
template <class Run>
void run_tasks(int64_t tasks, size_t scratch_bytes, const Run& run) {
  run_phases(&tasks, 1, scratch_bytes, [&](int, int64_t task, void* scratch) { run(task, scratch); });
}

}  // namespace maskfuse
