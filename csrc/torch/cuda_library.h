// What the dispatcher ops on CUDA share: one device for all operands, the stream of the caller, and launch checks.
//
// Compiled with MASKFUSE_SIMT the same sources are the library `maskfuse_simt`, which runs the kernels on the host (see
// csrc/simt/simt.h) on CPU tensors, for tests.
#pragma once

#include <atomic>

#include "tensor.h"

#ifdef MASKFUSE_SIMT
#include "../simt/simt.h"
#define MASKFUSE_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(maskfuse_simt, CPU, m)
#define MASKFUSE_CUDA_COMPOSITE(m) STABLE_TORCH_LIBRARY_IMPL(maskfuse_simt, CompositeExplicitAutograd, m)
#else
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#define MASKFUSE_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(maskfuse, CUDA, m)
#define MASKFUSE_CUDA_COMPOSITE(m) STABLE_TORCH_LIBRARY_IMPL(maskfuse, CompositeExplicitAutograd, m)
#endif

namespace maskfuse {

inline void check_launch(cudaError_t error, const char* op) {
  STD_TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

// Makes the operands' device the current one while it lives; refuses operands on several.
class OneDevice {
 public:
  OneDevice(const char* op, std::initializer_list<Named> operands)
#ifndef MASKFUSE_SIMT
      : guard_(checked(op, operands))
#endif
  {
  }

 private:
#ifndef MASKFUSE_SIMT
  static int32_t checked(const char* op, std::initializer_list<Named> operands) {
    const Named& first = *operands.begin();
    for (const Named& other : operands) {
      if (!other.tensor) continue;
      int32_t type;
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(other.tensor->get(), &type));
      STD_TORCH_CHECK(
          type == aoti_torch_device_type_cuda() && other.tensor->get_device_index() == first.tensor->get_device_index(),
          op, ": ", first.name, " and ", other.name, " must be on one CUDA device");
    }
    return first.tensor->get_device_index();
  }
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

inline cudaStream_t current_stream([[maybe_unused]] const Tensor& t) {
  void* stream = nullptr;
#ifndef MASKFUSE_SIMT
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
#endif
  return (cudaStream_t)stream;
}

// Of the tensor's device. The stand-in has few, so that small problems are split as large ones are.
inline int multiprocessors([[maybe_unused]] const Tensor& t) {
#ifdef MASKFUSE_SIMT
  return 6;
#else
  constexpr int kMostDevices = 64;
  static std::atomic<int> known[kMostDevices];
  const int device = t.get_device_index();
  int count = device < kMostDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    check_launch(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "maskfuse");
    if (device < kMostDevices) known[device].store(count, std::memory_order_relaxed);
  }
  return count;
#endif
}

}  // namespace maskfuse
