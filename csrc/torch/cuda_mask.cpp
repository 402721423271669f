// Dispatcher ops of the mask on CUDA.
#include "../cuda/mask.h"
#include "cuda_library.h"

namespace maskfuse {
namespace {

Tensor pack(const Tensor& dense) {
  const OneDevice guard("mask_pack", {{&dense, "dense"}});
  check_dtype(dense, ScalarType::Bool, "mask_pack", "dense");
  STD_TORCH_CHECK(dense.dim() == 2, "mask_pack: dense must have shape [rows, columns], got ", shape_of(dense));
  const Tensor from = as_contiguous(dense);
  const int64_t rows = dense.size(0), columns = dense.size(1);
  Tensor bits = torch::stable::new_empty(dense, {rows, mask_words(columns)}, ScalarType::Int);
  check_launch(cuda::mask_pack((const uint8_t*)from.const_data_ptr(), rows, columns, (uint32_t*)bits.mutable_data_ptr(),
                               current_stream(dense)),
               "mask_pack");
  return bits;
}

Tensor unpack(const Tensor& bits, int64_t columns) {
  const OneDevice guard("mask_unpack", {{&bits, "bits"}});
  STD_TORCH_CHECK(bits.dim() == 2 && columns >= 0, "mask_unpack: bits must have shape [rows, words], got ",
                  shape_of(bits), " for ", columns, " columns");
  check_bits(bits, bits.size(0), columns, "mask_unpack");
  const Tensor from = as_contiguous(bits);
  Tensor dense = torch::stable::new_empty(bits, {bits.size(0), columns}, ScalarType::Bool);
  check_launch(cuda::mask_unpack((const uint32_t*)from.const_data_ptr(), bits.size(0), columns,
                                 (uint8_t*)dense.mutable_data_ptr(), current_stream(bits)),
               "mask_unpack");
  return dense;
}

}  // namespace
}  // namespace maskfuse

MASKFUSE_CUDA_IMPL(m) {
  m.impl("mask_pack", TORCH_BOX(&maskfuse::pack));
  m.impl("mask_unpack", TORCH_BOX(&maskfuse::unpack));
}
