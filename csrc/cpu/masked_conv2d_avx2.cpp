// masked_conv2d in AVX2.
#include "vec_avx2.h"
//
#include "masked_conv2d_table.h"

namespace maskfuse {

const MaskedConvKernels* masked_conv2d_kernels_avx2() {
  static const MaskedConvKernels table = make_conv_table<F32x8, F64x4>();
  return &table;
}

}  // namespace maskfuse
