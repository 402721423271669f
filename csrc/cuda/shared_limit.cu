#ifndef MASKFUSE_SIMT  // the host's stand-in has no such limit
#include <mutex>
#include <set>
#include <utility>

#include "shared_limit.h"

namespace maskfuse::cuda {
namespace {

// What the kernel has of its own in shared memory counts too.
cudaError_t raise_on(const void* kernel, int device) {
  int most = 0;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most - (int)attributes.sharedSizeBytes);
}

}  // namespace

cudaError_t raise_shared_limit(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> raised;  // kernel, device
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> one(mutex);
  if (raised.count({kernel, device})) return cudaSuccess;
  const cudaError_t error = raise_on(kernel, device);
  if (error == cudaSuccess) raised.insert({kernel, device});
  return error;
}

}  // namespace maskfuse::cuda
#endif
