// The limit on a kernel's dynamic shared memory, which is 48 KiB until it is raised.
#pragma once

#include <cuda_runtime_api.h>

namespace maskfuse::cuda {

// Raises it on the current device to what a block may have there. The limit belongs to the kernel, not to a launch: it
// is set once and never lowered, so that no thread's launch, or graph that was captured, finds one too small for it.
cudaError_t raise_shared_limit(const void* kernel);

}  // namespace maskfuse::cuda
