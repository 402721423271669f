// gathered_conv2d in AVX2.
#include "vec_avx2.h"
//
#include "gathered_conv2d_kernel.h"

namespace maskfuse {

GatheredTask gathered_conv2d_task_avx2(Dtype dtype) { return gathered_task_of<F32x8, F64x4>(dtype); }

}  // namespace maskfuse
