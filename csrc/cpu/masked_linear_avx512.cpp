// masked_linear in AVX-512.
#include "vec_avx512.h"
//
#include "masked_linear_table.h"

namespace maskfuse {

const MaskedLinearKernels* masked_linear_kernels_avx512() {
  static const MaskedLinearKernels table = make_table<F32x16, F64x8>();
  return &table;
}

}  // namespace maskfuse
