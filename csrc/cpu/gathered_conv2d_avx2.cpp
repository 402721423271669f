// gathered_conv2d in AVX2.
#include "vec_avx2.h"
//
#include "gathered_conv2d_table.h"

namespace maskfuse {

GatheredTasks gathered_conv2d_tasks_avx2(Dtype dtype, Pass pass) {
  return gathered_tasks_of<F32x8, F64x4>(dtype, pass);
}

}  // namespace maskfuse
