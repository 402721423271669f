// masked_linear in AVX2: 6 x 2 accumulators, 2 vectors of B, 1 broadcast of the 16 registers.
#include "masked_linear_table.h"
#include "vec_avx2.h"

namespace maskfuse {

const MaskedLinearKernels* masked_linear_kernels_avx2() {
  static const MaskedLinearKernels table = make_table<Tiling<F32x8, 6, 2, 256, 192>, Tiling<F64x4, 6, 2, 256, 192>>();
  return &table;
}

}  // namespace maskfuse
