// Dispatcher ops of masked_linear on the CPU: checks, then the raw kernels.
#include "../cpu/masked_linear.h"

#include "../cpu/masked_linear_packed.h"
#include "../cpu/masked_linear_planner.h"
#include "masked_linear_library.h"
#include "masked_linear_ops.h"
#include "tasks.h"

namespace maskfuse {
namespace {

struct Cpu {
  using Problem = MaskedGemm;
  using Operands = maskfuse::Operands;
  using Guard = AnyDevice;

  static void attach_bits(MaskedGemm& g, Operands& keep, const Tensor& bits, const std::vector<Tensor>& plan,
                          int64_t rows, int64_t columns, const char* op) {
    maskfuse::attach_bits(g, keep, bits, plan, rows, columns, op);
  }
  static void attach_packed(MaskedGemm& g, Operands& keep, const std::vector<Tensor>& plan, const Tensor& weight,
                            const char* op) {
    maskfuse::attach_packed(g, keep, plan, weight.scalar_type(), weight.size(0), weight.size(1), op);
  }

  static void run(MaskedGemm& problem, const Tensor&, const char*) {
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
};

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
  attach_bits(g, keep, bits, plan, w.rows, w.columns, kOp);
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
  attach_bits(g, keep, bits, plan, out, in, kOp);
  if (g.pass == Pass::forward) attach_packed(g, keep, plan, type, out, in, kOp);
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
  maskfuse::MaskedLinearOps<maskfuse::Cpu>::implement(m);
  m.impl("masked_linear_pack", TORCH_BOX(&maskfuse::masked_linear_pack));
}

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CompositeExplicitAutograd, m) {
  m.impl("masked_linear_candidates", TORCH_BOX(&maskfuse::masked_linear_candidates));
  m.impl("prefer_masked_linear_kernel", TORCH_BOX(&maskfuse::prefer_masked_linear_kernel));
}
