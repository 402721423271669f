// setmaxnreg (sm_90): warps that need few registers leave them to others of their block. All four warps of a group take
// part; what is given must come before what is taken can be had, which the device waits for.
#pragma once

#include "machine.h"

namespace maskfuse::cuda {

template <int kRegisters>
__device__ __forceinline__ void give_registers() {
#ifndef MASKFUSE_SIMT
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
#ifndef MASKFUSE_SIMT
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
#endif
}

}  // namespace maskfuse::cuda
