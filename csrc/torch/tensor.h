// What every op needs to turn tensors into pointers and sizes: one place for checks and their wording.
#pragma once

#include <sys/mman.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
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

inline Dtype dtype_of(ScalarType type, const char* op, const char* name) {
  switch (type) {
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
  STD_TORCH_CHECK(false, op, ": ", name, " must be float32, float64, bfloat16 or float16, got ", name_of(type));
}

inline Dtype dtype_of(const Tensor& t, const char* op, const char* name) { return dtype_of(t.scalar_type(), op, name); }

// The inverse.
inline ScalarType scalar_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
      return ScalarType::Double;
    case Dtype::bf16:
      return ScalarType::BFloat16;
    case Dtype::f16:
      return ScalarType::Half;
    default:
      return ScalarType::Float;
  }
}

inline void check_dtype(const Tensor& t, ScalarType type, const char* op, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == type, op, ": ", name, " must be ", name_of(type), ", got ",
                  name_of(t.scalar_type()));
}

inline void check_same_dtype(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name, const char* op) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": ", a_name, " and ", b_name,
                  " must have the same dtype, got ", name_of(a.scalar_type()), " and ", name_of(b.scalar_type()));
}

inline bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
  if (t.dim() != (int64_t)shape.size()) return false;
  int64_t d = 0;
  for (int64_t size : shape)
    if (t.size(d++) != size) return false;
  return true;
}

inline void check_shape(const Tensor& t, std::initializer_list<int64_t> shape, const char* op, const char* name) {
  if (has_shape(t, shape)) return;
  std::ostringstream text;
  text << '[';
  const char* between = "";
  for (int64_t size : shape) text << between << size, between = ", ";
  text << ']';
  STD_TORCH_CHECK(false, op, ": ", name, " must have shape ", text.str(), ", got ", shape_of(t));
}

inline void check_bits(const Tensor& bits, int64_t rows, int64_t columns, const char* op) {
  check_dtype(bits, ScalarType::Int, op, "bits");
  check_shape(bits, {rows, mask_words(columns)}, op, "bits");
}

// An operand of an op and its name in messages; null where there is none.
struct Named {
  const Tensor* tensor;
  const char* name;
};

// The guard of a device that needs none: the dispatcher sends an op to the CPU where all operands lie there.
struct AnyDevice {
  AnyDevice(const char*, std::initializer_list<Named>) {}
};

// An uninitialised tensor of `like`'s dtype, on its device: new_empty without the call through the dispatcher.
// On the CPU, one that the system will map anew, because the allocator keeps no memory of its size, asks for large
// pages: a page fault for each 4 KiB costs more than many a product.
inline Tensor new_strided(const Tensor& like, const int64_t* sizes, const int64_t* strides, int64_t dim) {
  int32_t dtype, device, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, dtype, device, device_index, &handle));
  Tensor result(handle);
#ifdef MADV_HUGEPAGE
  constexpr int64_t kMappedBytes = int64_t{32} << 20;
  const int64_t bytes = result.numel() * (int64_t)like.element_size();
  if (device == aoti_torch_device_type_cpu() && bytes >= kMappedBytes) {
    const auto begin = ((uintptr_t)result.mutable_data_ptr() + 4095) & ~(uintptr_t)4095;
    madvise((void*)begin, (size_t)bytes - 4096, MADV_HUGEPAGE);  // advice: refused, nothing is lost
  }
#endif
  return result;
}

// The same, contiguous.
inline Tensor new_tensor(const Tensor& like, const int64_t* sizes, int64_t dim) {
  constexpr int64_t kMostDims = 64;
  STD_TORCH_CHECK(dim <= kMostDims, "a tensor has at most ", kMostDims, " dimensions, got ", dim);
  int64_t strides[kMostDims], count = 1;
  for (int64_t d = dim - 1; d >= 0; --d) {
    strides[d] = count;
    count *= std::max<int64_t>(1, sizes[d]);
  }
  return new_strided(like, sizes, strides, dim);
}

// torch::stable::contiguous is a call through the dispatcher even where there is nothing to do.
inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

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
