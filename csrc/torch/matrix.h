// Tensors of any number of dimensions as the matrices that kernels see.
#pragma once

#include "tensor.h"

namespace maskfuse {

// [..., columns] as a matrix: its shape in front of the last dimension is one dimension, `rows`.
struct Matrix {
  Tensor tensor;
  int64_t rows, columns, ld;
  const void* data() const { return tensor.const_data_ptr(); }
};

inline Matrix as_matrix(const Tensor& t, const char* op, const char* name) {
  STD_TORCH_CHECK(t.dim() >= 1, op, ": ", name, " must have at least one dimension, got a scalar");
  const int64_t columns = t.size(t.dim() - 1);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) rows *= t.size(d);
  const Tensor flat = unit_columns(t.dim() == 2 ? t : torch::stable::reshape(t, {rows, columns}));
  return {flat, rows, columns, flat.size(0) > 1 ? flat.stride(0) : columns};
}

// An uninitialised tensor of the shape of `t` but for its last dimension.
inline Tensor result_like(const Tensor& t, int64_t columns) {
  if (t.dim() == 2) {
    const int64_t shape[] = {t.size(0), columns};
    return new_tensor(t, shape, 2);
  }
  std::vector<int64_t> shape(t.sizes().begin(), t.sizes().end());
  shape.back() = columns;
  return new_tensor(t, shape.data(), t.dim());
}

}  // namespace maskfuse
