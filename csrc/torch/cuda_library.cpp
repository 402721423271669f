// What the CUDA library says about itself; its presence in the dispatcher tells that it is loaded.
#include <cuda_runtime_api.h>

#include <string>

#include "tensor.h"

#ifndef MASKFUSE_CUDA_ARCHITECTURES
#error "MASKFUSE_CUDA_ARCHITECTURES is set by setup.py"
#endif

namespace maskfuse {
namespace {

// key=value lines; parsed by maskfuse.build_info().
std::string cuda_library_info() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  return "runtime=" + std::to_string(CUDART_VERSION) + "\ndriver=" + std::to_string(driver) +
         "\narchitectures=" MASKFUSE_CUDA_ARCHITECTURES;
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY_FRAGMENT(maskfuse, m) { m.def("cuda_library_info() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CompositeExplicitAutograd, m) {
  m.impl("cuda_library_info", TORCH_BOX(&maskfuse::cuda_library_info));
}
