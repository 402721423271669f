// Tasks of one instruction set. Included by gathered_conv2d_{avx2,avx512}.cpp only.
#pragma once

#include "gathered_conv2d_kernel.h"
#include "gathered_conv2d_weight_grad.h"

namespace maskfuse {
namespace {

template <class V, class T>
static GatheredTasks gathered_tasks(Pass pass) {
  if (pass == Pass::weight_grad) return {{grad_sums_task<V, T>, grad_rows_task<V, T>}};
  return {{lanes_task<V, T>, tile_task<V, T>}};
}

template <class VectorF32, class VectorF64>
static GatheredTasks gathered_tasks_of(Dtype dtype, Pass pass) {
  switch (dtype) {
    case Dtype::f32:
      return gathered_tasks<VectorF32, float>(pass);
    case Dtype::f64:
      return gathered_tasks<VectorF64, double>(pass);
    case Dtype::bf16:
      return gathered_tasks<VectorF32, Bf16>(pass);
    default:
      return gathered_tasks<VectorF32, Fp16>(pass);
  }
}

}  // namespace
}  // namespace maskfuse
