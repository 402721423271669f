// What kernels wrote, against sums in double.
#pragma once

#include "operands.h"

namespace maskfuse::test {

// `value` as the dtype stores it.
inline double stored(Dtype dtype, double value) {
  const int bits = dtype == Dtype::bf16 ? 8 : dtype == Dtype::f16 ? 11 : 53;
  if (value == 0 || bits == 53) return value;
  const double unit = std::ldexp(1, std::ilogb(value) + 1 - bits);
  return std::nearbyint(value / unit) * unit;
}

inline void check_result(Dtype dtype, const std::vector<unsigned char>& got, const std::vector<double>& want,
                         bool exact, const char* what) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double value = read(dtype, got.data() + i * dtype_size(dtype)), expected = stored(dtype, want[i]);
    const double unit = dtype == Dtype::bf16 ? 0x1p-7 : dtype == Dtype::f16 ? 0x1p-10 : 0x1p-20;
    const double bound = exact ? 0 : 16 * unit * (1 + std::abs(expected));
    CHECK(std::abs(value - expected) <= bound, "%s, dtype %d, element %ld: %g, expected %g", what, (int)dtype, (long)i,
          value, expected);
  }
}

}  // namespace maskfuse::test
