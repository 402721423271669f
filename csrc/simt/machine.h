// What runs and what waits: the machine's state, between the scheduler (simt.cpp) and what a kernel asks for
// (operations.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "simt.h"
#include "stack.h"

namespace maskfuse::simt {

inline constexpr unsigned kWarp = 32;
// As a device of compute capability 9.0 has them.
inline constexpr unsigned kMostThreads = 1024;
inline constexpr int kMostPartBarriers = 15;
inline constexpr size_t kMostShared = 227 << 10;

struct Copy {
  char* to;
  const char* from;
  int bytes;
};

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
};
extern Machine machine;

// From the running thread back to the scheduler.
void give_way(State state);

}  // namespace maskfuse::simt
