// Tasks of a phase on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "phases.h"

namespace maskfuse {

// Calls run(phase, task, scratch) for the tasks of each phase: see phases.h.
template <class Run>
void run_phases(const int64_t* tasks, int phases, size_t scratch_bytes, const Run& run) {
  run_phases(tasks, phases, torch::stable::get_num_threads(), scratch_bytes, run,
             [](int64_t threads, const auto& work) {
               torch::stable::parallel_for(0, threads, 1, [&](int64_t self, int64_t) { work(self); });
             });
}

// The same for one phase: run(task, scratch).
template <class Run>
void run_tasks(int64_t tasks, size_t scratch_bytes, const Run& run) {
  run_phases(&tasks, 1, scratch_bytes, [&](int, int64_t task, void* scratch) { run(task, scratch); });
}

}  // namespace maskfuse
