// The scheduler: block after block, warps of a block and threads of a warp in an order that changes.
#include "simt.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "machine.h"

namespace maskfuse::simt {

Machine machine;  // NOLINT(bugprone-throwing-static-initialization): without memory no test runs

namespace {

void entry() {
  Stack::begun(machine.scheduler);
  try {
    machine.kernel(machine.context);
  } catch (...) {
    machine.failure = std::current_exception();
  }
  give_way(State::ended);
}

void resume(Thread& thread) {
  machine.running = &thread;
  threadIdx = thread.index;
  machine.scheduler.switch_to(thread.stack);
  if (machine.failure) std::rethrow_exception(std::exchange(machine.failure, nullptr));
}

void begin(Thread& thread, dim3 index) {
  thread.index = index;
  thread.state = State::ready;
  thread.groups.clear();
  thread.open.clear();
  thread.stack.begin(entry);
}

int64_t threads_in(State state) {
  int64_t count = 0;
  for (unsigned i = 0; i < machine.count; ++i) count += machine.threads[i]->state == state;
  return count;
}

[[noreturn]] void stuck(const char* what) {
  const auto at = [](State state) { return std::to_string(threads_in(state)); };
  throw std::runtime_error(
      std::string("a block of a kernel cannot go on: ") + what + " (block " + std::to_string(blockIdx.x) + ", " +
      std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "); " + at(State::at_barrier) +
      " threads at a barrier, " + at(State::at_part_barrier) + " at one of a part, " + at(State::at_exchange) +
      " in a warp's operation, " + at(State::waiting) + " waiting, " + at(State::ended) + " ended");
}

// Runs a warp until each of its threads has ended or waits for other warps; false where none could move.
bool run_warp(unsigned warp) {
  std::unique_ptr<Thread>* const lanes = machine.threads.data() + warp * kWarp;
  machine.warp = warp;
  unsigned order[kWarp];
  std::iota(order, order + kWarp, 0u);
  std::shuffle(order, order + kWarp, machine.random);
  for (bool moved = false;;) {
    for (unsigned lane : order) {
      Thread& thread = *lanes[lane];
      if (thread.state == State::waiting && thread.ready()) thread.state = State::ready;
      if (thread.state == State::ready) resume(thread), moved = true;
    }
    const auto waits = [](const std::unique_ptr<Thread>& t) { return t->state == State::at_exchange; };
    if (std::count_if(lanes, lanes + kWarp, waits) < kWarp) return moved;
    void* records[kWarp];
    for (unsigned i = 0; i < kWarp; ++i) {
      if (lanes[i]->all != lanes[0]->all || std::strcmp(lanes[i]->name, lanes[0]->name) != 0)
        stuck("lanes of a warp come to different operations");
      records[i] = lanes[i]->record;
    }
    lanes[0]->all(records);
    for (unsigned i = 0; i < kWarp; ++i) lanes[i]->state = State::ready;
  }
}

// One piece of work in the background, if there is any.
bool run_background() {
  if (machine.background.empty()) return false;
  std::swap(machine.background[machine.random() % machine.background.size()], machine.background.back());
  const Work work = std::move(machine.background.back());
  machine.background.pop_back();
  work();
  return true;
}

// Frees the threads of barriers of parts that have all their threads.
bool open_part_barriers() {
  bool opened = false;
  for (int id = 1; id <= kMostPartBarriers; ++id) {
    std::vector<Thread*> here;
    for (unsigned i = 0; i < machine.count; ++i) {
      Thread& thread = *machine.threads[i];
      if (thread.state == State::at_part_barrier && thread.part_id == id) here.push_back(&thread);
    }
    if (here.empty() || (int)here.size() < here[0]->part_threads) continue;
    for (Thread* thread : here) {
      if (thread->part_threads != (int)here.size()) stuck("threads come to a barrier of a part with other numbers");
      thread->state = State::ready;
    }
    opened = true;
  }
  return opened;
}

const char* why_stuck() {
  if (threads_in(State::at_exchange) > 0) return "not every lane of a warp comes to its operation";
  if (threads_in(State::waiting) > 0) return "what threads wait for does not come";
  if (threads_in(State::at_part_barrier) > 0) return "not every thread of a part comes to its barrier";
  return "threads ended before a barrier that others wait at";
}

void run_block(dim3 block) {
  unsigned i = 0;
  for (unsigned z = 0; z < block.z; ++z)
    for (unsigned y = 0; y < block.y; ++y)
      for (unsigned x = 0; x < block.x; ++x) begin(*machine.threads[i++], {x, y, z});
  machine.late_copies = machine.random() & 1;
  machine.warps.assign(machine.count / kWarp, {});
  machine.background.clear();
  std::vector<unsigned> warps(machine.count / kWarp);
  std::iota(warps.begin(), warps.end(), 0u);
  while (true) {
    std::shuffle(warps.begin(), warps.end(), machine.random);
    bool moved = false;
    for (unsigned warp : warps) moved = run_warp(warp) || moved;
    if (!moved || machine.random() & 1) moved = run_background() || moved;
    moved = open_part_barriers() || moved;
    if (threads_in(State::ended) == machine.count) break;
    if (threads_in(State::at_barrier) == machine.count) {
      for (i = 0; i < machine.count; ++i) machine.threads[i]->state = State::ready;
      moved = true;
    }
    if (!moved) stuck(why_stuck());
  }
  if (!machine.background.empty()) stuck("it ends before what it left in the background");
}

}  // namespace

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(void*), void* context) {
  const std::lock_guard<std::mutex> one(machine.mutex);
  const uint64_t threads = (uint64_t)block.x * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || threads % kWarp || shared_bytes > kMostShared)
    return cudaErrorInvalidConfiguration;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  ++machine.launches;
  machine.count = (unsigned)threads;
  while (machine.threads.size() < threads) machine.threads.push_back(std::make_unique<Thread>());
  machine.kernel = kernel, machine.context = context;
  // Its end is the end of the allocation, so that AddressSanitizer sees what lies behind it.
  constexpr size_t kAlignment = 1024;
  blockDim = block, gridDim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        machine.shared_storage.reset(new char[shared_bytes + kAlignment]);
        const auto at = (uintptr_t)machine.shared_storage.get();
        const size_t shift = (kAlignment - at % kAlignment) % kAlignment;
        machine.shared = machine.shared_storage.get() + shift;
        std::memset(machine.shared, 0xff, shared_bytes);
#if defined(__SANITIZE_ADDRESS__)
        ASAN_POISON_MEMORY_REGION(machine.shared + shared_bytes, kAlignment - shift);
#endif
        blockIdx = {x, y, z};
        run_block(block);
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(machine.shared + shared_bytes, kAlignment - shift);
#endif
      }
  return cudaSuccess;
}

void* shared() { return machine.shared; }
void seed(uint64_t value) { machine.random.seed(value); }
int64_t launches() { return machine.launches; }

}  // namespace maskfuse::simt
