// How the tasks of a call are shared among threads, whoever starts these.
#pragma once

#include <algorithm>
#include <atomic>
#include <new>
#include <thread>

#include "buffer.h"

namespace maskfuse {

inline constexpr int64_t kMostThreads = 256;

// Looks at what others have done before a thread lets them run.
inline constexpr int kSpins = 2000;

inline constexpr int kMostPhases = 4;

// Calls run(phase, task, scratch), which must not throw, for the tasks of each phase, [0, tasks[phase]), those of a
// phase after all of the phase before. Each thread begins with a part of its own, the same in every call: what one op
// wrote is in the cache of the core that will read it in the next. Then it helps others, task by task, so that one with
// more to do holds nobody up. Each has `scratch_bytes` to itself.
//
// Threads are woken once for all phases, by each_thread(threads, work), which calls work(self) for self in [0, threads)
// and returns when all are done. Between phases a thread waits for tasks that others have begun, never for a thread
// that may not have started: those that run do what there is.
template <class Run, class EachThread>
void run_phases(const int64_t* tasks, int phases, int64_t threads, size_t scratch_bytes, const Run& run,
                const EachThread& each_thread) {
  int64_t most = 0;
  for (int phase = 0; phase < phases; ++phase) most = std::max(most, tasks[phase]);
  if (most == 0) return;
  threads = std::min<int64_t>({most, threads, kMostThreads});
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
  const auto work = [&](int64_t self) {
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
    work(0);
  else
    each_thread(threads, work);
  if (done[phases - 1] < tasks[phases - 1]) throw std::bad_alloc();
}

}  // namespace maskfuse
