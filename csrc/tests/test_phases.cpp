// How threads share tasks, for the thread sanitizer to watch: each task once, those of a phase after all of the phase
// before, by threads that start late, and by those that are left where others have no memory.
#include <chrono>
#include <stdexcept>

#include "../torch/phases.h"
#include "harness.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

// Starts threads that begin together, or some of them late.
struct Started {
  bool late;
  template <class Work>
  void operator()(int64_t threads, const Work& work) const {
    std::vector<std::thread> pool;
    std::atomic<int64_t> ready{0};
    for (int64_t t = 0; t < threads; ++t)
      pool.emplace_back([&, t] {
        if (late && t % 2 == 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        ready.fetch_add(1, std::memory_order_relaxed);
        while (!late && ready.load(std::memory_order_relaxed) < threads) std::this_thread::yield();
        work(t);
      });
    for (auto& thread : pool) thread.join();
  }
};

void one_call(int phases, int64_t threads, int64_t most, size_t scratch_bytes, bool late) {
  int64_t tasks[kMostPhases] = {};
  std::vector<std::vector<int64_t>> result(phases);  // of each task: plain memory, as kernels write theirs
  for (int phase = 0; phase < phases; ++phase) {
    tasks[phase] = random_int(0, most);
    result[phase].assign((size_t)tasks[phase], 0);
  }
  const auto run = [&](int phase, int64_t task, void* scratch) {
    int64_t sum = 1;
    if (phase > 0)
      for (int64_t before : result[phase - 1]) sum += before;
    if (scratch_bytes > 0) {  // nobody else's
      auto* const own = (volatile int64_t*)scratch;
      *own = sum;
      sum = *own;
    }
    if (task % 3 == 0) std::this_thread::yield();  // others have a part in each phase, on a machine of few cores too
    result[phase][task] += sum;
  };
  run_phases(tasks, phases, threads, scratch_bytes, run, Started{late});
  int64_t before = 0;
  for (int phase = 0; phase < phases; ++phase) {
    int64_t sum = 0;
    for (int64_t value : result[phase]) {
      CHECK(value == 1 + before, "phase %d of %d, %ld threads: %ld, not %ld", phase, phases, (long)threads, (long)value,
            (long)(1 + before));
      sum += value;
    }
    before = sum;
  }
}

// More memory than there is: where every thread fails, the call does.
void without_memory() {
  const int64_t tasks[] = {5, 5};
  for (int64_t threads : {1, 3}) {
    bool failed = false;
    try {
      run_phases(tasks, 2, threads, size_t{1} << 46, [](int, int64_t, void*) {}, Started{false});
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    CHECK(failed, "%ld threads without scratch", (long)threads);
  }
}

}  // namespace

int main() {
  for (int i = 0; i < 300; ++i)
    one_call(1 + i % kMostPhases, (int64_t[]){1, 2, 3, 8}[random_int(0, 3)], i % 10 == 0 ? 2 : 40, i % 3 ? 64 : 0,
             i % 7 == 0);
  without_memory();
  return report("phases");
}
