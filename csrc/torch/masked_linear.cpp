// Dispatcher ops of masked_linear on the CPU: checks, then the raw kernels.
#include "../cpu/masked_linear.h"

#include <cstdlib>
#include <memory>
#include <new>

#include "tensor.h"

namespace maskfuse {
namespace {

// A grow-only buffer a thread: at most about 2 MiB, which would otherwise be mapped and faulted in a call.
void* thread_scratch(size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  static thread_local std::unique_ptr<void, Free> buffer;
  static thread_local size_t size = 0;
  if (bytes > size) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.reset();
    size = 0;
    buffer.reset(std::aligned_alloc(4096, rounded));
    if (!buffer) throw std::bad_alloc();
    size = rounded;
  }
  return buffer.get();
}

void run(const MaskedGemm& problem) {
  if (problem.m == 0 || problem.n == 0) return;
  const Schedule s = schedule(problem, isa_in_use(), (int)torch::stable::get_num_threads());
  torch::stable::parallel_for(0, s.tasks(), 1, [&](int64_t begin, int64_t end) {
    void* scratch = thread_scratch(s.scratch_bytes);
    for (int64_t task = begin; task < end; ++task) run_task(problem, s, task, scratch);
  });
}

// [..., columns] as a matrix: its shape in front of the last dimension is one dimension, `rows`.
struct Matrix {
  Tensor tensor;
  int64_t rows, columns, ld;
  const void* data() const { return tensor.const_data_ptr(); }
};

Matrix as_matrix(const Tensor& t, const char* op, const char* name) {
  STD_TORCH_CHECK(t.dim() >= 1, op, ": ", name, " must have at least one dimension, got a scalar");
  const int64_t columns = t.size(t.dim() - 1);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) rows *= t.size(d);
  const Tensor flat = unit_columns(t.dim() == 2 ? t : torch::stable::reshape(t, {rows, columns}));
  return {flat, rows, columns, flat.size(0) > 1 ? flat.stride(0) : columns};
}

Tensor result_like(const Tensor& t, int64_t columns) {
  std::vector<int64_t> shape(t.sizes().begin(), t.sizes().end());
  shape.back() = columns;
  return torch::stable::new_empty(t, shape);
}

void check_same_dtype(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name, const char* op) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": ", a_name, " and ", b_name,
                  " must have the same dtype, got ", name_of(a.scalar_type()), " and ", name_of(b.scalar_type()));
}

// The mask of a problem over rows x columns weights: bits, or factors of the operands' dtype.
struct MaskArgument {
  const Tensor& tensor;
  bool is_bits;
};

// Keeps what `attach` made alive for as long as the problem points into it.
struct Operands {
  Tensor mask, bias;
};

void attach_mask(MaskedGemm& g, Operands& keep, const MaskArgument& mask, const Tensor& like, int64_t rows,
                 int64_t columns, const char* op) {
  if (mask.is_bits) {
    check_bits(mask.tensor, rows, columns, op);
    keep.mask = torch::stable::contiguous(mask.tensor);
    g.bits = (const uint32_t*)keep.mask.const_data_ptr();
    g.bits_ld = mask_words(columns);
    static const uint32_t none = 0;  // an empty mask has no storage, and null would mean "factors"
    if (g.bits == nullptr) g.bits = &none;
  } else {
    check_shape(mask.tensor, {rows, columns}, op, "mask");
    check_same_dtype(mask.tensor, "mask", like, "the other operands", op);
    const Matrix m = as_matrix(mask.tensor, op, "mask");
    keep.mask = m.tensor;
    g.factor = m.data();
    g.factor_ld = m.ld;
  }
}

Tensor forward(const char* op, const Tensor& input, const Tensor& weight, const MaskArgument& mask,
               const std::optional<Tensor>& bias) {
  MaskedGemm g{};
  Operands keep;
  g.pass = Pass::forward;
  g.dtype = dtype_of(input, op, "input");
  STD_TORCH_CHECK(weight.dim() == 2, op, ": weight must have shape [out, in], got ", shape_of(weight));
  check_same_dtype(input, "input", weight, "weight", op);
  const Matrix a = as_matrix(input, op, "input"), b = as_matrix(weight, op, "weight");
  STD_TORCH_CHECK(a.columns == b.columns, op, ": input ", shape_of(input), " does not fit weight ", shape_of(weight));
  attach_mask(g, keep, mask, input, b.rows, b.columns, op);
  if (bias) {
    check_same_dtype(input, "input", *bias, "bias", op);
    check_shape(*bias, {b.rows}, op, "bias");
    keep.bias = torch::stable::contiguous(*bias);
    g.bias = keep.bias.const_data_ptr();
  }
  Tensor out = result_like(input, b.rows);
  g.m = a.rows, g.n = b.rows, g.k = a.columns;
  g.a = a.data(), g.a_ld = a.ld, g.b = b.data(), g.b_ld = b.ld;
  g.c = out.mutable_data_ptr(), g.c_ld = b.rows;
  run(g);
  return out;
}

Tensor input_grad(const char* op, const Tensor& grad, const Tensor& weight, const MaskArgument& mask) {
  MaskedGemm g{};
  Operands keep;
  g.pass = Pass::input_grad;
  g.dtype = dtype_of(grad, op, "grad");
  STD_TORCH_CHECK(weight.dim() == 2, op, ": weight must have shape [out, in], got ", shape_of(weight));
  check_same_dtype(grad, "grad", weight, "weight", op);
  const Matrix a = as_matrix(grad, op, "grad"), b = as_matrix(weight, op, "weight");
  STD_TORCH_CHECK(a.columns == b.rows, op, ": grad ", shape_of(grad), " does not fit weight ", shape_of(weight));
  attach_mask(g, keep, mask, grad, b.rows, b.columns, op);
  Tensor out = result_like(grad, b.columns);
  g.m = a.rows, g.n = b.columns, g.k = b.rows;
  g.a = a.data(), g.a_ld = a.ld, g.b = b.data(), g.b_ld = b.ld;
  g.c = out.mutable_data_ptr(), g.c_ld = b.columns;
  run(g);
  return out;
}

Tensor weight_grad(const char* op, const Tensor& grad, const Tensor& input, const MaskArgument& mask) {
  MaskedGemm g{};
  Operands keep;
  g.pass = Pass::weight_grad;
  g.dtype = dtype_of(grad, op, "grad");
  check_same_dtype(grad, "grad", input, "input", op);
  const Matrix a = as_matrix(grad, op, "grad"), b = as_matrix(input, op, "input");
  STD_TORCH_CHECK(a.rows == b.rows, op, ": grad ", shape_of(grad), " and input ", shape_of(input),
                  " must have the same leading dimensions");
  attach_mask(g, keep, mask, grad, a.columns, b.columns, op);
  Tensor out = torch::stable::new_empty(grad, {a.columns, b.columns});
  g.m = a.columns, g.n = b.columns, g.k = a.rows;
  g.a = a.data(), g.a_ld = a.ld, g.b = b.data(), g.b_ld = b.ld;
  g.c = out.mutable_data_ptr(), g.c_ld = b.columns;
  run(g);
  return out;
}

// The ops. `plan` is reserved for kernels that need more than the bits; the masked dense product does not.
Tensor masked_linear(const Tensor& input, const Tensor& weight, const Tensor& bits, const std::vector<Tensor>&,
                     const std::optional<Tensor>& bias) {
  return forward("masked_linear", input, weight, {bits, true}, bias);
}
Tensor masked_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& bits,
                                const std::vector<Tensor>&) {
  return input_grad("masked_linear_input_grad", grad, weight, {bits, true});
}
Tensor masked_linear_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& bits,
                                 const std::vector<Tensor>&) {
  return weight_grad("masked_linear_weight_grad", grad, input, {bits, true});
}
Tensor soft_masked_linear(const Tensor& input, const Tensor& weight, const Tensor& mask,
                          const std::optional<Tensor>& bias) {
  return forward("soft_masked_linear", input, weight, {mask, false}, bias);
}
Tensor soft_masked_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& mask) {
  return input_grad("soft_masked_linear_input_grad", grad, weight, {mask, false});
}
Tensor soft_masked_linear_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& factor) {
  return weight_grad("soft_masked_linear_weight_grad", grad, input, {factor, false});
}

// Which kernel a product would run on: "packed avx512", by the function that chooses it for real.
std::string masked_linear_kernel(std::string pass, int64_t batch, int64_t out, int64_t in, ScalarType type) {
  static const uint32_t bits = 0;
  MaskedGemm g{};
  g.bits = &bits;
  g.dtype = type == ScalarType::Double     ? Dtype::f64
            : type == ScalarType::BFloat16 ? Dtype::bf16
            : type == ScalarType::Half     ? Dtype::f16
                                           : Dtype::f32;
  if (pass == "forward")
    g.pass = Pass::forward, g.m = batch, g.n = out, g.k = in;
  else if (pass == "input_grad")
    g.pass = Pass::input_grad, g.m = batch, g.n = in, g.k = out;
  else if (pass == "weight_grad")
    g.pass = Pass::weight_grad, g.m = out, g.n = in, g.k = batch;
  else
    STD_TORCH_CHECK(false, "masked_linear_kernel: pass must be forward, input_grad or weight_grad, got ", pass);
  const Schedule s = schedule(g, isa_in_use(), (int)torch::stable::get_num_threads());
  return std::string(kernel_name(s.kernel)) + " " + isa_name(s.isa);
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&maskfuse::masked_linear));
  m.impl("masked_linear_input_grad", TORCH_BOX(&maskfuse::masked_linear_input_grad));
  m.impl("masked_linear_weight_grad", TORCH_BOX(&maskfuse::masked_linear_weight_grad));
  m.impl("soft_masked_linear", TORCH_BOX(&maskfuse::soft_masked_linear));
  m.impl("soft_masked_linear_input_grad", TORCH_BOX(&maskfuse::soft_masked_linear_input_grad));
  m.impl("soft_masked_linear_weight_grad", TORCH_BOX(&maskfuse::soft_masked_linear_weight_grad));
}

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CompositeExplicitAutograd, m) {
  m.impl("masked_linear_kernel", TORCH_BOX(&maskfuse::masked_linear_kernel));
}
