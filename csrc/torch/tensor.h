// What every op needs to turn tensors into pointers and sizes: one place for checks and their wording.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "../cpu/dtype.h"
#include "../cpu/mask.h"

namespace maskfuse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& t) {
  std::ostringstream text;
  text << '[';
  for (int64_t d = 0; d < t.dim(); ++d) text << (d ? ", " : "") << t.size(d);
  text << ']';
  return text.str();
}

inline const char* name_of(ScalarType type) { return torch::headeronly::toString(type); }

inline Dtype dtype_of(const Tensor& t, const char* op, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      break;
  }
  STD_TORCH_CHECK(false, op, ": ", name, " must be float32, float64, bfloat16 or float16, got ",
                  name_of(t.scalar_type()));
}

inline void check_dtype(const Tensor& t, ScalarType type, const char* op, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == type, op, ": ", name, " must be ", name_of(type), ", got ",
                  name_of(t.scalar_type()));
}

inline void check_shape(const Tensor& t, std::initializer_list<int64_t> shape, const char* op, const char* name) {
  bool same = t.dim() == (int64_t)shape.size();
  std::ostringstream text;
  text << '[';
  int64_t d = 0;
  for (int64_t size : shape) {
    same = same && t.size(d) == size;
    text << (d++ ? ", " : "") << size;
  }
  text << ']';
  STD_TORCH_CHECK(same, op, ": ", name, " must have shape ", text.str(), ", got ", shape_of(t));
}

inline void check_bits(const Tensor& bits, int64_t rows, int64_t columns, const char* op) {
  check_dtype(bits, ScalarType::Int, op, "bits");
  check_shape(bits, {rows, mask_words(columns)}, op, "bits");
}

// The tensor itself where its last dimension is contiguous, else a copy: kernels take a row stride only.
inline Tensor unit_columns(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  if (t.stride(last) == 1 || t.size(last) <= 1) {
    // A broadcast or overlapping row stride is fine to read; a negative one does not exist in torch.
    return t;
  }
  return torch::stable::contiguous(t);
}

}  // namespace maskfuse
