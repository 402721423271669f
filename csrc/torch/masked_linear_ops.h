// The dispatcher ops of masked_linear, soft_masked_linear and gated_linear, alike on every device: checks, the problem
// in pointers and sizes, and the device's own `run`.
//
// `Device` has: Problem (a MaskedGemm and what the device adds), Operands (what must live until `run` is done), Guard
// (made from all operands before anything else), attach_bits, attach_packed, and run(Problem&).
#pragma once

#include "masked_weight.h"
#include "matrix.h"

namespace maskfuse {

template <class Device>
struct MaskedLinearOps {
  using Problem = typename Device::Problem;
  using Operands = typename Device::Operands;
  using Guard = typename Device::Guard;

  // The mask of a problem over rows x columns weights: bits, and their plan; or factors of the operands' dtype, or the
  // scores of a gate.
  struct MaskArgument {
    const Tensor& tensor;
    const std::vector<Tensor>* plan;
    bool gate = false;
  };

  static void attach_mask(Problem& g, Operands& keep, const MaskArgument& mask, const Tensor& like, int64_t rows,
                          int64_t columns, const char* op) {
    if (mask.plan) {
      Device::attach_bits(g, keep, mask.tensor, *mask.plan, rows, columns, op);
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

  static Tensor forward(const char* op, const Tensor& input, const Tensor& weight, const MaskArgument& mask,
                        const std::optional<Tensor>& bias) {
    const Guard guard(
        op, {{&input, "input"}, {&weight, "weight"}, {&mask.tensor, "mask"}, {bias ? &*bias : nullptr, "bias"}});
    Problem g{};
    Operands keep;
    g.pass = Pass::forward;
    g.dtype = dtype_of(input, op, "input");
    STD_TORCH_CHECK(weight.dim() == 2, op, ": weight must have shape [out, in], got ", shape_of(weight));
    check_same_dtype(input, "input", weight, "weight", op);
    const Matrix a = as_matrix(input, op, "input"), b = as_matrix(weight, op, "weight");
    STD_TORCH_CHECK(a.columns == b.columns, op, ": input ", shape_of(input), " does not fit weight ", shape_of(weight));
    attach_mask(g, keep, mask, input, b.rows, b.columns, op);
    if (mask.plan) Device::attach_packed(g, keep, *mask.plan, weight, op);
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
    Device::run(g, out, op);
    return out;
  }

  static Tensor input_grad(const char* op, const Tensor& grad, const Tensor& weight, const MaskArgument& mask) {
    const Guard guard(op, {{&grad, "grad"}, {&weight, "weight"}, {&mask.tensor, "mask"}});
    Problem g{};
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
    Device::run(g, out, op);
    return out;
  }

  // `g` has what only a gate needs, or nothing.
  static Tensor weight_grad(const char* op, const Tensor& grad, const Tensor& input, const MaskArgument& mask,
                            Problem g = {}) {
    const Guard guard(op, {{&grad, "grad"}, {&input, "input"}, {&mask.tensor, "mask"}});
    Operands keep;
    g.pass = Pass::weight_grad;
    g.dtype = dtype_of(grad, op, "grad");
    check_same_dtype(grad, "grad", input, "input", op);
    const Matrix a = as_matrix(grad, op, "grad"), b = as_matrix(input, op, "input");
    STD_TORCH_CHECK(a.rows == b.rows, op, ": grad ", shape_of(grad), " and input ", shape_of(input),
                    " must have the same leading dimensions");
    attach_mask(g, keep, mask, grad, a.columns, b.columns, op);
    const int64_t shape[] = {a.columns, b.columns};
    Tensor out = new_tensor(grad, shape, 2);
    g.m = a.columns, g.n = b.columns, g.k = a.rows;
    g.a = a.data(), g.a_ld = a.ld, g.b = b.data(), g.b_ld = b.ld;
    g.c = out.mutable_data_ptr(), g.c_ld = b.columns;
    Device::run(g, out, op);
    return out;
  }

  static Tensor masked_linear(const Tensor& input, const Tensor& weight, const Tensor& bits,
                              const std::vector<Tensor>& plan, const std::optional<Tensor>& bias) {
    return forward("masked_linear", input, weight, {bits, &plan}, bias);
  }
  static Tensor masked_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& bits,
                                         const std::vector<Tensor>& plan) {
    return input_grad("masked_linear_input_grad", grad, weight, {bits, &plan});
  }
  static Tensor masked_linear_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& bits,
                                          const std::vector<Tensor>& plan) {
    return weight_grad("masked_linear_weight_grad", grad, input, {bits, &plan});
  }

  static Tensor soft_masked_linear(const Tensor& input, const Tensor& weight, const Tensor& mask,
                                   const std::optional<Tensor>& bias) {
    return forward("soft_masked_linear", input, weight, {mask, nullptr}, bias);
  }
  static Tensor soft_masked_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& mask) {
    return input_grad("soft_masked_linear_input_grad", grad, weight, {mask, nullptr});
  }
  static Tensor soft_masked_linear_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& factor) {
    return weight_grad("soft_masked_linear_weight_grad", grad, input, {factor, nullptr});
  }

  static Tensor gated_linear(const Tensor& input, const Tensor& weight, const Tensor& scores,
                             const std::optional<Tensor>& bias) {
    return forward("gated_linear", input, weight, {scores, nullptr, true}, bias);
  }
  static Tensor gated_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& scores) {
    return input_grad("gated_linear_input_grad", grad, weight, {scores, nullptr, true});
  }
  // Gradients of weight and scores, in one pass.
  static std::tuple<Tensor, Tensor> gated_linear_weight_grad(const Tensor& grad, const Tensor& input,
                                                             const Tensor& weight, const Tensor& scores) {
    constexpr const char* kOp = "gated_linear_weight_grad";
    const Guard guard(kOp, {{&grad, "grad"}, {&weight, "weight"}});
    check_shape(weight, {scores.dim() == 2 ? scores.size(0) : -1, scores.dim() == 2 ? scores.size(1) : -1}, kOp,
                "weight");
    check_same_dtype(grad, "grad", weight, "weight", kOp);
    const Matrix w = as_matrix(weight, kOp, "weight");
    const int64_t shape[] = {w.rows, w.columns};
    Tensor scores_grad = new_tensor(grad, shape, 2);
    Problem extra{};
    extra.weight = w.data(), extra.weight_ld = w.ld;
    extra.c_scores = scores_grad.mutable_data_ptr(), extra.c_scores_ld = w.columns;
    Tensor out = weight_grad(kOp, grad, input, {scores, nullptr, true}, extra);
    return {out, scores_grad};
  }

  template <class Library>
  static void implement(Library& m) {
    m.impl("masked_linear", TORCH_BOX(&MaskedLinearOps::masked_linear));
    m.impl("masked_linear_unrecorded", TORCH_BOX(&MaskedLinearOps::masked_linear));
    m.impl("masked_linear_input_grad", TORCH_BOX(&MaskedLinearOps::masked_linear_input_grad));
    m.impl("masked_linear_weight_grad", TORCH_BOX(&MaskedLinearOps::masked_linear_weight_grad));
    m.impl("soft_masked_linear", TORCH_BOX(&MaskedLinearOps::soft_masked_linear));
    m.impl("soft_masked_linear_input_grad", TORCH_BOX(&MaskedLinearOps::soft_masked_linear_input_grad));
    m.impl("soft_masked_linear_weight_grad", TORCH_BOX(&MaskedLinearOps::soft_masked_linear_weight_grad));
    m.impl("gated_linear", TORCH_BOX(&MaskedLinearOps::gated_linear));
    m.impl("gated_linear_input_grad", TORCH_BOX(&MaskedLinearOps::gated_linear_input_grad));
    m.impl("gated_linear_weight_grad", TORCH_BOX(&MaskedLinearOps::gated_linear_weight_grad));
  }
};

}  // namespace maskfuse
