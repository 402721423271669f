// masked_conv2d in AVX-512.
#include "vec_avx512.h"
//
#include "masked_conv2d_table.h"

namespace maskfuse {

const MaskedConvKernels* masked_conv2d_kernels_avx512() {
  static const MaskedConvKernels table = make_conv_table<F32x16, F64x8>();
  return &table;
}

}  // namespace maskfuse
