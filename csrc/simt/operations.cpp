// What a kernel's threads ask of the machine: barriers, operations of a warp, asynchronous copies and products.
#include <cstring>
#include <stdexcept>
#include <utility>

#include "machine.h"

namespace maskfuse::simt {
namespace {

void carry_out(const Copy& copy) {
  std::memcpy(copy.to, copy.from, (size_t)copy.bytes);
  std::memset(copy.to + copy.bytes, 0, (size_t)(16 - copy.bytes));
}

}  // namespace

void give_way(State state) {
  Thread& thread = *machine.running;
  thread.state = state;
  thread.stack.switch_to(machine.scheduler, state == State::ended);
}

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
