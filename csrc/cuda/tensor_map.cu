#include "tensor_map.h"

#ifndef MASKFUSE_SIMT
#include <cudaTypedefs.h>
#endif

namespace maskfuse::cuda {

#ifdef MASKFUSE_SIMT

cudaError_t make_tensor_map(TensorMap* map, const void* data, int64_t rows, int64_t columns, int64_t ld, int box_rows,
                            Dtype) {
  if ((uintptr_t)data % 16 || ld % 8 || ld < columns || rows < 1 || columns < 1 || box_rows < 1 ||
      box_rows > kMostBoxRows)
    return cudaErrorInvalidValue;
  *map = {(const uint16_t*)data, rows, columns, ld, box_rows};
  return cudaSuccess;
}

#else

namespace {

// The driver's function. This library does not link to the driver, so that it loads where there is none.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
  const bool there = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
  return there ? (PFN_cuTensorMapEncodeTiled_v12000)found : nullptr;
}

// Gives a thread the context of its device. The runtime does so in its first call that needs one; a thread whose first
// work on the device this is, as autograd's may be, has none, and the driver asks for it.
cudaError_t bind_context() {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaSetDevice(device) : error;
}

}  // namespace

cudaError_t make_tensor_map(TensorMap* map, const void* data, int64_t rows, int64_t columns, int64_t ld, int box_rows,
                            Dtype dtype) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = encoder();
  if (!encode) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {(cuuint64_t)columns, (cuuint64_t)rows}, row_bytes[] = {(cuuint64_t)ld * 2};
  const cuuint32_t box[] = {kBoxColumns, (cuuint32_t)box_rows}, steps[] = {1, 1};
  const auto call = [&] {
    return encode(map, dtype == Dtype::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
                  const_cast<void*>(data), sizes, row_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = call();
  if (result == CUDA_ERROR_INVALID_CONTEXT) {
    const cudaError_t error = bind_context();
    if (error != cudaSuccess) return error;
    result = call();
  }
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

#endif

}  // namespace maskfuse::cuda
