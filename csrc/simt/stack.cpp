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
