// Fills the kernel table of one instruction set. Included by masked_conv2d_{avx2,avx512}.cpp only.
#pragma once

#include "masked_conv2d_accumulate.h"
#include "masked_conv2d_shifted.h"
#include "masked_conv2d_weight_grad.h"

namespace maskfuse {
namespace {

template <class V, class T>
static void fill_conv_dtype(MaskedConvKernels& table, Dtype dtype) {
  const int d = (int)dtype;
  table.values[0][d] = conv_values_task<V, T, false>;
  table.values[1][d] = conv_values_task<V, T, true>;
  table.accumulate[d] = conv_accumulate_task<V, T>;
  table.list_lengths[d] = list_lengths_task<T>;
  table.lists[d] = lists_task<V, T>;
  table.shifted[d] = shifted_task<V, T>;
  table.sampled[d] = conv_sampled_task<V, T>;
  table.reduced[d] = conv_reduced_task<V, T>;
}

template <class VectorF32, class VectorF64>
static MaskedConvKernels make_conv_table() {
  MaskedConvKernels table{};
  fill_conv_dtype<VectorF32, float>(table, Dtype::f32);
  fill_conv_dtype<VectorF64, double>(table, Dtype::f64);
  fill_conv_dtype<VectorF32, Bf16>(table, Dtype::bf16);
  fill_conv_dtype<VectorF32, Fp16>(table, Dtype::f16);
  table.offsets = conv_offsets_task;
  table.list_bounds = list_bounds_task;
  table.vector_bytes = (int32_t)sizeof(typename VectorF32::Reg);
  return table;
}

}  // namespace
}  // namespace maskfuse
