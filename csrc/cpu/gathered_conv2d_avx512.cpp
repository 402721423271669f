// gathered_conv2d in AVX-512.
#include "vec_avx512.h"
//
#include "gathered_conv2d_kernel.h"

namespace maskfuse {

GatheredTask gathered_conv2d_task_avx512(Dtype dtype) { return gathered_task_of<F32x16, F64x8>(dtype); }

}  // namespace maskfuse
