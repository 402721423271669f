// A stack of its own for each thread of a block, and the switch between stacks.
//
// The C library's swapcontext would do, and does where there is nothing better, but it asks the system for the signal
// mask in each switch: most of a test's time. AddressSanitizer is told of every switch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Keeps the registers that a call keeps on the stack that runs, whose pointer goes to *from, and goes on at `to`.
extern "C" void maskfuse_simt_switch(void** from, void* to);
#endif

namespace maskfuse::simt {

class Stack {
 public:
  // The next switch to this stack begins entry(), which never returns.
  void begin(void (*entry)()) {
    if (!memory_) memory_.reset(new char[kBytes]);
    fake_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(memory_.get(), kBytes);  // what the last thread on it left marked
#endif
#if defined(__x86_64__)
    // As if it had been left by maskfuse_simt_switch, called at the very beginning of `entry`.
    char* const end = memory_.get() + kBytes;
    auto** top = (void**)(end - (uintptr_t)end % 16);
    *--top = nullptr;  // where a return address would be: the stack is aligned as after a call
    *--top = (void*)entry;
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    pointer_ = (void*)top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = memory_.get();
    context_.uc_stack.ss_size = kBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // What a stack does first when it begins; `from` is the one that switched to it.
  static void begun([[maybe_unused]] Stack& from) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &from.bottom_, &from.bytes_);
#endif
  }

  // Goes on with `to`; returns when something switches back. `last`: nothing will.
  void switch_to(Stack& to, [[maybe_unused]] bool last = false) {
#if defined(__SANITIZE_ADDRESS__)
    const bool own = to.memory_ != nullptr;
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_, own ? to.memory_.get() : to.bottom_,
                                   own ? kBytes : to.bytes_);
#endif
#if defined(__x86_64__)
    maskfuse_simt_switch(&pointer_, to.pointer_);
#else
    swapcontext(&context_, &to.context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_, nullptr, nullptr);
#endif
  }

 private:
  static constexpr size_t kBytes = 128 << 10;
  std::unique_ptr<char[]> memory_;  // none for the stack of the thread that runs everything
#if defined(__x86_64__)
  void* pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  // AddressSanitizer's.
  void* fake_ = nullptr;
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace maskfuse::simt
