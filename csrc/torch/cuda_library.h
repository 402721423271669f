// What the dispatcher ops on CUDA share: one device for all operands, the stream of the caller, and launch checks.
//
// Compiled with MASKFUSE_SIMT the same sources are the library `maskfuse_simt`, which runs the kernels on the host (see
// csrc/simt/simt.h) on CPU tensors, for tests.
#pragma once

#include <atomic>
#include <cstring>

#include "../cuda/masked_linear.h"
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

#ifndef MASKFUSE_SIMT
// Asked for once a device: it does not change.
template <cudaDeviceAttr kAttribute>
int device_attribute(const Tensor& t) {
  constexpr int kMostDevices = 64;
  static std::atomic<int> known[kMostDevices];
  const int device = t.get_device_index();
  int value = device < kMostDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (value == 0) {
    check_launch(cudaDeviceGetAttribute(&value, kAttribute, device), "maskfuse");
    if (device < kMostDevices) known[device].store(value, std::memory_order_relaxed);
  }
  return value;
}
#endif

inline cudaStream_t current_stream([[maybe_unused]] const Tensor& t) {
  void* stream = nullptr;
#ifndef MASKFUSE_SIMT
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
#endif
  return (cudaStream_t)stream;
}

// Multiprocessors of the tensor's device, and the shared memory that a block may ask for there. The stand-in has few,
// so that small problems are split as large ones are.
inline int multiprocessors([[maybe_unused]] const Tensor& t) {
#ifdef MASKFUSE_SIMT
  return 6;
#else
  return device_attribute<cudaDevAttrMultiProcessorCount>(t);
#endif
}
inline int64_t block_shared([[maybe_unused]] const Tensor& t) {
#ifdef MASKFUSE_SIMT
  return 227 << 10;
#else
  return device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>(t);
#endif
}

// Ten times the device's compute capability; of the stand-in, as tests have it.
#ifdef MASKFUSE_SIMT
inline std::atomic<int> simt_capability{80};
#endif
inline int capability([[maybe_unused]] const Tensor& t) {
#ifdef MASKFUSE_SIMT
  return simt_capability;
#else
  return 10 * device_attribute<cudaDevAttrComputeCapabilityMajor>(t) +
         device_attribute<cudaDevAttrComputeCapabilityMinor>(t);
#endif
}

// When the library is used, for tests that are about the kernels or about it; the stand-in's kernels are what is tested
// there.
#ifdef MASKFUSE_SIMT
inline std::atomic<cuda::Library> library_use{cuda::Library::never};
#else
inline std::atomic<cuda::Library> library_use{cuda::Library::faster};
#endif

// What choices for the tensor's device depend on.
inline cuda::Device device_of(const Tensor& t) {
  return {{multiprocessors(t), block_shared(t)}, capability(t), library_use.load(std::memory_order_relaxed)};
}

// Bytes [at, at + bytes) of a tensor, for the host: waits for the stream.
inline void read_back(const Tensor& from, int64_t at, int64_t bytes, void* to, [[maybe_unused]] const char* op) {
  const char* const source = (const char*)from.const_data_ptr() + at;
#ifdef MASKFUSE_SIMT
  std::memcpy(to, source, (size_t)bytes);
#else
  const cudaStream_t stream = current_stream(from);
  check_launch(cudaMemcpyAsync(to, source, (size_t)bytes, cudaMemcpyDeviceToHost, stream), op);
  check_launch(cudaStreamSynchronize(stream), op);
#endif
}

// A pass by the name that ops and `explain` have for it.
inline Pass pass_of(const std::string& name, const char* op) {
  STD_TORCH_CHECK(name == "forward" || name == "input_grad" || name == "weight_grad", op,
                  ": direction must be forward, input_grad or weight_grad, got ", name);
  return name == "forward" ? Pass::forward : name == "input_grad" ? Pass::input_grad : Pass::weight_grad;
}

}  // namespace maskfuse
