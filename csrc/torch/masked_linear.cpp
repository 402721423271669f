// Dispatcher ops of masked_linear on the CPU: checks, then the raw kernels.
#include "../cpu/masked_linear.h"

#include "../cpu/masked_linear_packed.h"
#include "../cpu/masked_linear_planner.h"
#include "masked_linear_library.h"
#include "masked_weight.h"
#include "tasks.h"
#include "tensor.h"

namespace maskfuse {
namespace {

void run(MaskedGemm& problem) {
  if (problem.m == 0 || problem.n == 0) return;
  problem.library = true;
  const Schedule s = schedule(problem, isa_in_use(), (int)torch::stable::get_num_threads());
  if (s.kernel == Kernel::library) return run_library(problem, s.isa);
  Buffer once;
  Buffer& buffer = s.shared_bytes > kKeptBytes ? once : thread_shared();
  void* const shared = s.shared_bytes > 0 ? buffer.get(s.shared_bytes) : nullptr;
  const int64_t tasks[] = {s.first.tasks(), s.grid.tasks()};
  run_phases(tasks, 2, s.scratch_bytes,
             [&](int phase, int64_t task, void* scratch) { run_task(problem, s, phase, task, shared, scratch); });
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
  if (t.dim() == 2) {
    const int64_t shape[] = {t.size(0), columns};
    return empty_cpu(t, shape, 2);
  }
  std::vector<int64_t> shape(t.sizes().begin(), t.sizes().end());
  shape.back() = columns;
  return empty_cpu(t, shape.data(), t.dim());
}

// The mask of a problem over rows x columns weights: bits, and their plan; or factors of the operands' dtype, or the
// scores of a gate.
struct MaskArgument {
  const Tensor& tensor;
  const std::vector<Tensor>* plan;
  bool gate = false;
};

void attach_mask(MaskedGemm& g, Operands& keep, const MaskArgument& mask, const Tensor& like, int64_t rows,
                 int64_t columns, const char* op) {
  if (mask.plan) {
    attach_bits(g, keep, mask.tensor, *mask.plan, rows, columns, op);
  } else {
    const char* const name = mask.gate ? "scores" : "mask";
    check_shape(mask.tensor, {rows, columns}, op, name);
    check_same_dtype(mask.tensor, name, like, "the other operands", op);
    const Matrix m = as_matrix(mask.tensor, op, name);
    g.gate = mask.gate;
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
  if (mask.plan) attach_packed(g, keep, *mask.plan, weight.scalar_type(), b.rows, op);
  if (bias) {
    check_same_dtype(input, "input", *bias, "bias", op);
    check_shape(*bias, {b.rows}, op, "bias");
    keep.bias = as_contiguous(*bias);
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

// `g` has what only a gate needs, or nothing.
Tensor weight_grad(const char* op, const Tensor& grad, const Tensor& input, const MaskArgument& mask,
                   MaskedGemm g = {}) {
  Operands keep;
  g.pass = Pass::weight_grad;
  g.dtype = dtype_of(grad, op, "grad");
  check_same_dtype(grad, "grad", input, "input", op);
  const Matrix a = as_matrix(grad, op, "grad"), b = as_matrix(input, op, "input");
  STD_TORCH_CHECK(a.rows == b.rows, op, ": grad ", shape_of(grad), " and input ", shape_of(input),
                  " must have the same leading dimensions");
  attach_mask(g, keep, mask, grad, a.columns, b.columns, op);
  const int64_t shape[] = {a.columns, b.columns};
  Tensor out = empty_cpu(grad, shape, 2);
  g.m = a.columns, g.n = b.columns, g.k = a.rows;
  g.a = a.data(), g.a_ld = a.ld, g.b = b.data(), g.b_ld = b.ld;
  g.c = out.mutable_data_ptr(), g.c_ld = b.columns;
  run(g);
  return out;
}

Tensor masked_linear(const Tensor& input, const Tensor& weight, const Tensor& bits, const std::vector<Tensor>& plan,
                     const std::optional<Tensor>& bias) {
  return forward("masked_linear", input, weight, {bits, &plan}, bias);
}
Tensor masked_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& bits,
                                const std::vector<Tensor>& plan) {
  return input_grad("masked_linear_input_grad", grad, weight, {bits, &plan});
}
Tensor masked_linear_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& bits,
                                 const std::vector<Tensor>& plan) {
  return weight_grad("masked_linear_weight_grad", grad, input, {bits, &plan});
}
Tensor soft_masked_linear(const Tensor& input, const Tensor& weight, const Tensor& mask,
                          const std::optional<Tensor>& bias) {
  return forward("soft_masked_linear", input, weight, {mask, nullptr}, bias);
}
Tensor soft_masked_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& mask) {
  return input_grad("soft_masked_linear_input_grad", grad, weight, {mask, nullptr});
}
Tensor soft_masked_linear_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& factor) {
  return weight_grad("soft_masked_linear_weight_grad", grad, input, {factor, nullptr});
}

Tensor gated_linear(const Tensor& input, const Tensor& weight, const Tensor& scores,
                    const std::optional<Tensor>& bias) {
  return forward("gated_linear", input, weight, {scores, nullptr, true}, bias);
}
Tensor gated_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& scores) {
  return input_grad("gated_linear_input_grad", grad, weight, {scores, nullptr, true});
}
// Gradients of weight and scores, in one pass.
std::tuple<Tensor, Tensor> gated_linear_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                    const Tensor& scores) {
  constexpr const char* kOp = "gated_linear_weight_grad";
  check_shape(weight, {scores.dim() == 2 ? scores.size(0) : -1, scores.dim() == 2 ? scores.size(1) : -1}, kOp,
              "weight");
  check_same_dtype(grad, "grad", weight, "weight", kOp);
  const Matrix w = as_matrix(weight, kOp, "weight");
  const int64_t shape[] = {w.rows, w.columns};
  Tensor scores_grad = empty_cpu(grad, shape, 2);
  MaskedGemm extra{};
  extra.weight = w.data(), extra.weight_ld = w.ld;
  extra.c_scores = scores_grad.mutable_data_ptr(), extra.c_scores_ld = w.columns;
  Tensor out = weight_grad(kOp, grad, input, {scores, nullptr, true}, extra);
  return {out, scores_grad};
}

// The active weights alone: row after row, their columns where few are active, and where each row's begin; and in the
// order of the plan.
std::vector<Tensor> masked_linear_pack(const Tensor& weight, const Tensor& bits, const std::vector<Tensor>& plan) {
  constexpr const char* kOp = "masked_linear_pack";
  MaskedGemm g{};
  Operands keep;
  g.pass = Pass::forward;
  g.dtype = dtype_of(weight, kOp, "weight");
  STD_TORCH_CHECK(weight.dim() == 2, kOp, ": weight must have shape [out, in], got ", shape_of(weight));
  const Matrix w = as_matrix(weight, kOp, "weight");
  attach_mask(g, keep, {bits, &plan}, weight, w.rows, w.columns, kOp);
  g.n = w.rows, g.k = w.columns, g.b = w.data(), g.b_ld = w.ld;
  Tensor rows = torch::stable::new_empty(weight, {w.rows + 1}, ScalarType::Long);
  auto* const starts = (int64_t*)rows.mutable_data_ptr();
  const int64_t active = packed_rows(g.bits, w.rows, w.columns, starts);
  const bool listed = w.columns <= kListedColumns && (double)active < kListedDensity * (double)(w.rows * w.columns);
  Tensor values = torch::stable::new_zeros(weight, {active + kPackedPad});
  Tensor columns = torch::stable::new_empty(weight, {listed ? active : 0}, ScalarType::Short);
  void* const to = values.mutable_data_ptr();
  auto* const at = listed && active > 0 ? (uint16_t*)columns.mutable_data_ptr() : nullptr;
  torch::stable::parallel_for(0, w.rows, std::max<int64_t>(1, 65536 / std::max<int64_t>(1, w.columns)),
                              [&](int64_t begin, int64_t end) {
                                packed_values(g.bits, w.columns, w.data(), w.ld, g.dtype, starts, begin, end, to, at);
                              });
  return {values, columns, rows, ordered_weights(g, weight)};
}

// The kernels that could run a product, by the function that chooses for real, the chosen one first. A line each: name,
// estimated nanoseconds, then what was counted as name=count.
std::string masked_linear_candidates(std::string pass, int64_t batch, const Tensor& bits, int64_t in,
                                     const std::vector<Tensor>& plan, ScalarType type) {
  constexpr const char* kOp = "masked_linear_candidates";
  MaskedGemm g{};
  Operands keep;
  g.library = true;
  STD_TORCH_CHECK(bits.dim() == 2 && batch >= 0, kOp,
                  ": bits must have shape [out, words] and batch not be negative, got ", shape_of(bits), " and ",
                  batch);
  const int64_t out = bits.size(0);
  g.dtype = dtype_of(type, kOp, "dtype");
  if (pass == "forward")
    g.pass = Pass::forward, g.m = batch, g.n = out, g.k = in;
  else if (pass == "input_grad")
    g.pass = Pass::input_grad, g.m = batch, g.n = in, g.k = out;
  else if (pass == "weight_grad")
    g.pass = Pass::weight_grad, g.m = out, g.n = in, g.k = batch;
  else
    STD_TORCH_CHECK(false, kOp, ": pass must be forward, input_grad or weight_grad, got ", pass);
  attach_mask(g, keep, {bits, &plan}, bits, out, in, kOp);
  if (g.pass == Pass::forward) attach_packed(g, keep, plan, type, out, kOp);
  Candidate list[kMostCandidates];
  const int count = candidates(g, isa_in_use(), (int)torch::stable::get_num_threads(), list);
  return describe_candidates(list, count);
}

void prefer_masked_linear_kernel(std::string name) {
  STD_TORCH_CHECK(prefer_kernel(name.c_str()), "prefer_masked_linear_kernel: there is no kernel ", name);
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&maskfuse::masked_linear));
  m.impl("masked_linear_unrecorded", TORCH_BOX(&maskfuse::masked_linear));
  m.impl("masked_linear_input_grad", TORCH_BOX(&maskfuse::masked_linear_input_grad));
  m.impl("masked_linear_weight_grad", TORCH_BOX(&maskfuse::masked_linear_weight_grad));
  m.impl("gated_linear", TORCH_BOX(&maskfuse::gated_linear));
  m.impl("gated_linear_input_grad", TORCH_BOX(&maskfuse::gated_linear_input_grad));
  m.impl("gated_linear_weight_grad", TORCH_BOX(&maskfuse::gated_linear_weight_grad));
  m.impl("masked_linear_pack", TORCH_BOX(&maskfuse::masked_linear_pack));
  m.impl("soft_masked_linear", TORCH_BOX(&maskfuse::soft_masked_linear));
  m.impl("soft_masked_linear_input_grad", TORCH_BOX(&maskfuse::soft_masked_linear_input_grad));
  m.impl("soft_masked_linear_weight_grad", TORCH_BOX(&maskfuse::soft_masked_linear_weight_grad));
}

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CompositeExplicitAutograd, m) {
  m.impl("masked_linear_candidates", TORCH_BOX(&maskfuse::masked_linear_candidates));
  m.impl("prefer_masked_linear_kernel", TORCH_BOX(&maskfuse::prefer_masked_linear_kernel));
}
