// What the elements of a dtype are when channels are added.
#pragma once

#include "../cpu/channel_scatter.h"
#include "tensor.h"

namespace maskfuse {

struct Addend {
  Number number;
  int64_t parts;
};

// None where a dtype has no sum.
inline std::optional<Addend> addend(ScalarType type) {
  switch (type) {
    case ScalarType::Bool:
      return Addend{Number::boolean, 1};
    case ScalarType::Byte:
    case ScalarType::Char:
      return Addend{Number::i8, 1};
    case ScalarType::Short:
    case ScalarType::UInt16:
      return Addend{Number::i16, 1};
    case ScalarType::Int:
    case ScalarType::UInt32:
      return Addend{Number::i32, 1};
    case ScalarType::Long:
    case ScalarType::UInt64:
      return Addend{Number::i64, 1};
    case ScalarType::Float:
      return Addend{Number::f32, 1};
    case ScalarType::Double:
      return Addend{Number::f64, 1};
    case ScalarType::BFloat16:
      return Addend{Number::bf16, 1};
    case ScalarType::Half:
      return Addend{Number::f16, 1};
    case ScalarType::ComplexHalf:
      return Addend{Number::f16, 2};
    case ScalarType::ComplexFloat:
      return Addend{Number::f32, 2};
    case ScalarType::ComplexDouble:
      return Addend{Number::f64, 2};
    default:
      return std::nullopt;
  }
}

}  // namespace maskfuse
