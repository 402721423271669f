// masked_linear in AVX2.
#include "vec_avx2.h"
//
#include "masked_linear_table.h"

namespace maskfuse {

const MaskedLinearKernels* masked_linear_kernels_avx2() {
  static const MaskedLinearKernels table = make_table<F32x8, F64x4>();
  return &table;
}

}  // namespace maskfuse
