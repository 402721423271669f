// Fills the kernel table of one instruction set. Included by masked_linear_{avx2,avx512}.cpp only.
#pragma once

#include "masked_linear_decode.h"
#include "masked_linear_few_rows.h"
#include "masked_linear_library.h"

namespace maskfuse {
namespace {

template <class V, class T>
static void fill_dtype(MaskedLinearKernels& table, Dtype dtype) {
  constexpr MaskKind kBits = MaskKind::bits, kFactor = MaskKind::factor, kGate = MaskKind::gate;
  const int d = (int)dtype;
  table.few_rows[0][d][0] = row_dot_task<V, kBits, T>;
  table.few_rows[0][d][1] = row_dot_task<V, kFactor, T>;
  table.few_rows[0][d][2] = row_dot_task<V, kGate, T>;
  table.few_rows[1][d][0] = streamed_task<V, kBits, T>;
  table.few_rows[1][d][1] = streamed_task<V, kFactor, T>;
  table.few_rows[1][d][2] = streamed_task<V, kGate, T>;
  table.decode[d] = decode_task<V, T>;
  table.lanes[d] = lanes_task<V, T>;
  table.accumulate[0][d][0] = accumulate_task<V, T, false, kBits>;
  table.accumulate[0][d][1] = accumulate_task<V, T, false, kFactor>;
  table.accumulate[0][d][2] = accumulate_task<V, T, false, kGate>;
  table.accumulate[1][d][0] = accumulate_task<V, T, true, kBits>;
  table.accumulate[1][d][1] = accumulate_task<V, T, true, kFactor>;
  table.accumulate[1][d][2] = accumulate_task<V, T, true, kGate>;
  table.values[0][d] = values_task<V, T, false>;
  table.values[1][d] = values_task<V, T, true>;
  table.accumulate_batch[d] = accumulate_batch_task<V, T>;
  table.sampled[d] = sampled_task<V, T>;
  table.tiled[d][0] = tiled_task<V, T, kBits>;
  table.tiled[d][1] = tiled_task<V, T, kFactor>;
  table.tiled[d][2] = tiled_task<V, T, kGate>;
  table.masked_copy[d][0] = masked_copy_task<V, T, kBits>;
  table.masked_copy[d][1] = masked_copy_task<V, T, kFactor>;
  table.masked_copy[d][2] = masked_copy_task<V, T, kGate>;
  table.masked_result[d][0] = masked_result_task<V, T, kBits>;
  table.masked_result[d][1] = masked_result_task<V, T, kFactor>;
  table.masked_result[d][2] = masked_result_task<V, T, kGate>;
  table.gather[d] = gather_columns<V, T>;
  table.scatter[d] = scatter_columns<V, T>;
}

template <class VectorF32, class VectorF64>
static MaskedLinearKernels make_table() {
  MaskedLinearKernels table{};
  fill_dtype<VectorF32, float>(table, Dtype::f32);
  fill_dtype<VectorF64, double>(table, Dtype::f64);
  fill_dtype<VectorF32, Bf16>(table, Dtype::bf16);
  fill_dtype<VectorF32, Fp16>(table, Dtype::f16);
  table.vector_bytes = (int32_t)sizeof(typename VectorF32::Reg);
  return table;
}

}  // namespace
}  // namespace maskfuse
