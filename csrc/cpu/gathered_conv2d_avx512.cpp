// gathered_conv2d in AVX-512.
#include "vec_avx512.h"
//
#include "gathered_conv2d_table.h"

namespace maskfuse {

GatheredTasks gathered_conv2d_tasks_avx512(Dtype dtype, Pass pass) {
  return gathered_tasks_of<F32x16, F64x8>(dtype, pass);
}

}  // namespace maskfuse
