#include "simt.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "stack.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl maskfuse_simt_switch
.hidden maskfuse_simt_switch
.type maskfuse_simt_switch, @function
maskfuse_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size maskfuse_simt_switch, .-maskfuse_simt_switch
)");
#endif

namespace maskfuse::simt {
namespace {

constexpr unsigned kWarp = 32;
// As a device of compute capability 9.0 has them.
constexpr unsigned kMostThreads = 1024;
constexpr int kMostPartBarriers = 15;
constexpr size_t kMostShared = 227 << 10;

struct Copy {
  char* to;
  const char* from;
  int bytes;
};

void carry_out(const Copy& copy) {
  std::memcpy(copy.to, copy.from, (size_t)copy.bytes);
  std::memset(copy.to + copy.bytes, 0, (size_t)(16 - copy.bytes));
}

enum class State { ready, at_barrier, at_exchange, waiting, at_part_barrier, ended };

struct Thread {
  Stack stack;
  dim3 index;
  State state = State::ready;
  const char* name = nullptr;  // of the operation it waits in
  void* record = nullptr;
  void (*all)(void* const*) = nullptr;
  std::deque<std::vector<Copy>> groups;  // committed
  std::vector<Copy> open;
  std::function<bool()> ready;
  int part_id = 0, part_threads = 0;
};

using Work = std::function<void()>;
struct Warp {
  std::deque<std::vector<Work>> groups;
  std::vector<Work> open;
};

// One launch at a time, on the thread that asked for it.
struct Machine {
  std::vector<std::unique_ptr<Thread>> threads;  // stacks are kept from block to block
  unsigned count = 0;
  Stack scheduler;
  Thread* running = nullptr;
  void (*kernel)(void*) = nullptr;
  void* context = nullptr;
  std::unique_ptr<char[]> shared_storage;
  char* shared = nullptr;
  bool late_copies = false;
  std::vector<Warp> warps;
  unsigned warp = 0;  // that runs
  std::vector<Work> background;
  std::exception_ptr failure;  // of a thread, which cannot throw over its own stack's end
  std::mt19937_64 random{1};
  int64_t launches = 0;
  std::mutex mutex;
} machine;

// From the running thread back to the scheduler.
void give_way(State state) {
  Thread& thread = *machine.running;
  thread.state = state;
  thread.stack.switch_to(machine.scheduler, state == State::ended);
}

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

void barrier() { give_way(State::at_barrier); }

void exchange(const char* name, void* mine, void (*all)(void* const*)) {
  Thread& thread = *machine.running;
  thread.name = name, thread.record = mine, thread.all = all;
  give_way(State::at_exchange);
}

void copy_async(void* to, const void* from, int bytes) {
  if ((uintptr_t)to % 16 || (uintptr_t)from % 16) throw std::runtime_error("an asynchronous copy is not aligned");
  const Copy copy{(char*)to, (const char*)from, bytes};
  if (machine.late_copies)
    machine.running->open.push_back(copy);
  else
    carry_out(copy);
}

void copy_commit() {
  Thread& thread = *machine.running;
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

void copy_wait(int groups_left) {
  Thread& thread = *machine.running;
  for (; (int)thread.groups.size() > groups_left; thread.groups.pop_front())
    for (const Copy& copy : thread.groups.front()) carry_out(copy);
}

void wait_until(std::function<bool()> ready) {
  if (ready()) return;
  machine.running->ready = std::move(ready);
  give_way(State::waiting);
}

void pause() {
  for (auto turns = machine.random() % 4; turns > 0; --turns) give_way(State::ready);
}

void part_barrier(int id, int threads) {
  if (id < 1 || id > kMostPartBarriers || threads <= 0 || threads % (int)kWarp)
    throw std::runtime_error("a barrier of a part has a wrong number");
  machine.running->part_id = id, machine.running->part_threads = threads;
  give_way(State::at_part_barrier);
}

void in_background(std::function<void()> work) { machine.background.push_back(std::move(work)); }

void warp_work(std::function<void()> work) {
  if (machine.late_copies)
    machine.warps[machine.warp].open.push_back(std::move(work));
  else
    work();
}

void warp_commit() {
  Warp& warp = machine.warps[machine.warp];
  warp.groups.push_back(std::move(warp.open));
  warp.open.clear();
}

void warp_wait(int groups_left) {
  Warp& warp = machine.warps[machine.warp];
  for (; (int)warp.groups.size() > groups_left; warp.groups.pop_front())
    for (const Work& work : warp.groups.front()) work();
}

}  // namespace maskfuse::simt
