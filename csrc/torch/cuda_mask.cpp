// Dispatcher ops of the mask on CUDA: checks, device guard, current stream, launch check.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../cuda/mask.h"
#include "tensor.h"

namespace maskfuse {
namespace {

cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return (cudaStream_t)stream;
}

Tensor pack(const Tensor& dense) {
  check_dtype(dense, ScalarType::Bool, "mask_pack", "dense");
  STD_TORCH_CHECK(dense.dim() == 2, "mask_pack: dense must have shape [rows, columns], got ", shape_of(dense));
  const torch::stable::accelerator::DeviceGuard guard(dense.get_device_index());
  const Tensor from = torch::stable::contiguous(dense);
  const int64_t rows = dense.size(0), columns = dense.size(1);
  Tensor bits = torch::stable::new_empty(dense, {rows, mask_words(columns)}, ScalarType::Int);
  STD_CUDA_CHECK(cuda::mask_pack((const uint8_t*)from.const_data_ptr(), rows, columns,
                                 (uint32_t*)bits.mutable_data_ptr(), current_stream(dense)));
  return bits;
}

Tensor unpack(const Tensor& bits, int64_t columns) {
  STD_TORCH_CHECK(bits.dim() == 2 && columns >= 0, "mask_unpack: bits must have shape [rows, words], got ",
                  shape_of(bits), " for ", columns, " columns");
  check_bits(bits, bits.size(0), columns, "mask_unpack");
  const torch::stable::accelerator::DeviceGuard guard(bits.get_device_index());
  const Tensor from = torch::stable::contiguous(bits);
  Tensor dense = torch::stable::new_empty(bits, {bits.size(0), columns}, ScalarType::Bool);
  STD_CUDA_CHECK(cuda::mask_unpack((const uint32_t*)from.const_data_ptr(), bits.size(0), columns,
                                   (uint8_t*)dense.mutable_data_ptr(), current_stream(bits)));
  return dense;
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CUDA, m) {
  m.impl("mask_pack", TORCH_BOX(&maskfuse::pack));
  m.impl("mask_unpack", TORCH_BOX(&maskfuse::unpack));
}
