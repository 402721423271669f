// Dispatcher ops of the mask on the CPU.
#include "../cpu/mask.h"

#include <atomic>
#include <exception>

#include "../cpu/isa.h"
#include "../cpu/masked_linear_plan.h"
#include "tensor.h"

namespace maskfuse {
namespace {

constexpr int64_t kRowsWorthAThread = 1 << 16;  // elements

int64_t grain(int64_t columns) { return std::max<int64_t>(1, kRowsWorthAThread / std::max<int64_t>(1, columns)); }

Tensor pack(const Tensor& dense) {
  check_dtype(dense, ScalarType::Bool, "mask_pack", "dense");
  STD_TORCH_CHECK(dense.dim() == 2, "mask_pack: dense must have shape [rows, columns], got ", shape_of(dense));
  const Tensor from = as_contiguous(dense);
  const int64_t rows = dense.size(0), columns = dense.size(1);
  Tensor bits = torch::stable::new_empty(dense, {rows, mask_words(columns)}, ScalarType::Int);
  const auto* source = (const uint8_t*)from.const_data_ptr();
  auto* target = (uint32_t*)bits.mutable_data_ptr();
  torch::stable::parallel_for(0, rows, grain(columns),
                              [&](int64_t begin, int64_t end) { mask_pack(source, columns, target, begin, end); });
  return bits;
}

Tensor unpack(const Tensor& bits, int64_t columns) {
  STD_TORCH_CHECK(bits.dim() == 2 && columns >= 0, "mask_unpack: bits must have shape [rows, words], got ",
                  shape_of(bits), " for ", columns, " columns");
  check_bits(bits, bits.size(0), columns, "mask_unpack");
  const Tensor from = as_contiguous(bits);
  Tensor dense = torch::stable::new_empty(bits, {bits.size(0), columns}, ScalarType::Bool);
  const auto* source = (const uint32_t*)from.const_data_ptr();
  auto* target = (uint8_t*)dense.mutable_data_ptr();
  torch::stable::parallel_for(0, bits.size(0), grain(columns),
                              [&](int64_t begin, int64_t end) { mask_unpack(source, columns, target, begin, end); });
  return dense;
}

Tensor structure(const Tensor& bits, int64_t columns, int64_t inner) {
  STD_TORCH_CHECK(bits.dim() == 2 && columns >= 0 && inner >= 1 && columns % inner == 0,
                  "mask_structure: bits must have shape [rows, words] and columns be a multiple of inner, got ",
                  shape_of(bits), ", ", columns, " and ", inner);
  check_bits(bits, bits.size(0), columns, "mask_structure");
  const Tensor from = as_contiguous(bits);
  const MaskStructure s = mask_structure((const uint32_t*)from.const_data_ptr(), bits.size(0), columns, inner);
  Tensor result = torch::stable::new_empty(bits, {6}, ScalarType::Long);
  auto* to = (int64_t*)result.mutable_data_ptr();
  for (int64_t value : {(int64_t)s.kind, s.active, s.block_rows, s.block_columns, s.n, s.m}) *to++ = value;
  return result;
}

// The bits of the transposed mask, [columns / taps, words(rows * taps)]: `taps` neighbouring columns stay together.
Tensor transpose(const Tensor& bits, int64_t columns, int64_t taps) {
  STD_TORCH_CHECK(bits.dim() == 2 && columns >= 0, "mask_transpose: bits must have shape [rows, words], got ",
                  shape_of(bits), " for ", columns, " columns");
  STD_TORCH_CHECK(taps >= 1 && columns % taps == 0, "mask_transpose: taps ", taps, " must divide ", columns,
                  " columns");
  const int64_t rows = bits.size(0), channels = columns / taps;
  check_bits(bits, rows, columns, "mask_transpose");
  const Tensor from = as_contiguous(bits);
  Tensor result = torch::stable::new_empty(bits, {channels, mask_words(rows * taps)});
  const auto* source = (const uint32_t*)from.const_data_ptr();
  auto* target = (uint32_t*)result.mutable_data_ptr();
  torch::stable::parallel_for(
      0, mask_words(channels), std::max<int64_t>(1, grain(rows * taps) / 32), [&](int64_t begin, int64_t end) {
        mask_transpose(source, rows, columns, taps, target, 32 * begin, std::min(32 * end, channels));
      });
  return result;
}

// The index of the mask for kernels that walk active weights only; empty where it would have 2^32 of them.
// `taps` columns are one channel of a convolution; 0 for a linear layer.
Tensor plan(const Tensor& bits, int64_t columns, int64_t taps) {
  STD_TORCH_CHECK(bits.dim() == 2 && columns >= 0, "mask_plan: bits must have shape [rows, words], got ",
                  shape_of(bits), " for ", columns, " columns");
  STD_TORCH_CHECK(taps >= 0, "mask_plan: taps must not be negative, got ", taps);
  const int64_t rows = bits.size(0);
  check_bits(bits, rows, columns, "mask_plan");
  const Tensor from = as_contiguous(bits);
  const auto* source = (const uint32_t*)from.const_data_ptr();
  int64_t active = 0;
  for (int64_t i = 0; i < rows * mask_words(columns); ++i) active += count_bits(source[i]);
  PlanBuilder builder(source, rows, columns, active, first_level_cache(), taps);
  // An exception, out of memory for one, must not leave a thread of the pool: it is carried out.
  std::exception_ptr error;
  std::atomic<bool> failed{false};
  const auto each_panel = [&](auto&& work) {
    torch::stable::parallel_for(0, builder.panels(), 1, [&](int64_t begin, int64_t end) {
      try {
        for (int64_t panel = begin; panel < end; ++panel) work(panel);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  };
  each_panel([&](int64_t panel) { builder.build(panel); });
  Tensor result = torch::stable::new_empty(bits, {builder.layout()}, ScalarType::Byte);
  if (result.size(0) > 0) {
    void* const to = result.mutable_data_ptr();
    builder.write_header(to);
    each_panel([&](int64_t panel) { builder.write(panel, to); });
  }
  return result;
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CPU, m) {
  m.impl("mask_pack", TORCH_BOX(&maskfuse::pack));
  m.impl("mask_unpack", TORCH_BOX(&maskfuse::unpack));
  m.impl("mask_structure", TORCH_BOX(&maskfuse::structure));
  m.impl("mask_transpose", TORCH_BOX(&maskfuse::transpose));
  m.impl("mask_plan", TORCH_BOX(&maskfuse::plan));
}
