// Fills the kernel table of one instruction set. Included by masked_linear_{avx2,avx512}.cpp only.
#pragma once

#include "masked_linear_few_rows.h"
#include "masked_linear_packed.h"

namespace maskfuse {
namespace {

template <class Tile, class T>
static void fill_dtype(MaskedLinearKernels& table, Dtype dtype) {
  using V = typename Tile::V;
  const int d = (int)dtype;
  table.few_rows[0][d][0] = row_dot_task<V, MaskKind::bits, T>;
  table.few_rows[0][d][1] = row_dot_task<V, MaskKind::factor, T>;
  table.few_rows[1][d][0] = streamed_task<V, MaskKind::bits, T>;
  table.few_rows[1][d][1] = streamed_task<V, MaskKind::factor, T>;
  table.packed[0][d][0] = packed_task<Tile, T, Pass::forward, MaskKind::bits>;
  table.packed[0][d][1] = packed_task<Tile, T, Pass::forward, MaskKind::factor>;
  table.packed[1][d][0] = packed_task<Tile, T, Pass::input_grad, MaskKind::bits>;
  table.packed[1][d][1] = packed_task<Tile, T, Pass::input_grad, MaskKind::factor>;
  table.packed[2][d][0] = packed_task<Tile, T, Pass::weight_grad, MaskKind::bits>;
  table.packed[2][d][1] = packed_task<Tile, T, Pass::weight_grad, MaskKind::factor>;
}

// Both tilings share all blocking but the width of a vector, so that one scratch size serves them.
template <class TileF32, class TileF64>
static MaskedLinearKernels make_table() {
  static_assert(TileF32::MR == TileF64::MR && TileF32::MC == TileF64::MC && TileF32::KC == TileF64::KC);
  MaskedLinearKernels table{};
  fill_dtype<TileF32, float>(table, Dtype::f32);
  fill_dtype<TileF64, double>(table, Dtype::f64);
  fill_dtype<TileF32, Bf16>(table, Dtype::bf16);
  fill_dtype<TileF32, Fp16>(table, Dtype::f16);
  table.m_tile = TileF32::MR;
  table.n_tile[0] = TileF32::NR;
  table.n_tile[1] = TileF64::NR;
  table.m_block = TileF32::MC;
  table.k_block = TileF32::KC;
  return table;
}

}  // namespace
}  // namespace maskfuse
