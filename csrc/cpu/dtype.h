// Element types of the raw kernels.
//
// A matrix is stored as one of four types and accumulated in one of two: the half types accumulate in
// float, float and double in themselves.
#pragma once

#include <stdint.h>

namespace maskfuse {

enum class Dtype : int32_t { f32, f64, bf16, f16 };

// Storage of the half types; the bits are converted by the instruction set's own loads and stores.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

inline constexpr int64_t dtype_size(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

// The type a sum over products is kept in.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

}  // namespace maskfuse
