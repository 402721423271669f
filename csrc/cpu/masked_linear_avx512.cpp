// masked_linear in AVX-512: 14 x 2 accumulators, 2 vectors of B, 1 broadcast of the 32 registers.
#include "masked_linear_table.h"
#include "vec_avx512.h"

namespace maskfuse {

const MaskedLinearKernels* masked_linear_kernels_avx512() {
  static const MaskedLinearKernels table =
      make_table<Tiling<F32x16, 14, 2, 384, 532>, Tiling<F64x8, 14, 2, 384, 532>>();
  return &table;
}

}  // namespace maskfuse
