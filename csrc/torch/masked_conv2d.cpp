// Dispatcher ops of masked_conv2d on the CPU: checks, then the raw kernels.
#include "../cpu/masked_conv2d.h"

#include "../cpu/masked_conv2d_planner.h"
#include "conv_shape.h"
#include "image.h"
#include "masked_conv2d_library.h"
#include "masked_weight.h"
#include "tasks.h"
#include "torch_conv2d.h"

namespace maskfuse {
namespace {

// What masked_conv2d_pack returned, behind the plan.
void attach_ordered(MaskedConv& g, Operands& keep, const std::vector<Tensor>& plan, ScalarType type, const char* op) {
  if (plan.size() <= kOrdered) return;
  const Tensor& ordered = plan[kOrdered];
  if (ordered.scalar_type() != sum_type(type)) return;  // packed in another dtype than a cast call runs in
  STD_TORCH_CHECK(g.plan && ordered.dim() == 1 && ordered.is_contiguous() && ordered.size(0) == ordered_values(*g.plan),
                  op, ": plan does not hold a packed weight of this mask");
  keep.packed = {nullptr, nullptr, nullptr, ordered.const_data_ptr()};
  g.packed = &keep.packed;
}

void run(const char* op, const MaskedConv& g, const ConvSchedule& s) {
  Buffer once;
  Buffer& buffer = s.shared_bytes > kKeptBytes ? once : thread_shared();
  void* const shared = s.shared_bytes > 0 ? buffer.get(s.shared_bytes) : nullptr;
  prepare(g, s, shared);
  const int phases = s.phase_count < kMostPhases ? (int)s.phase_count : kMostPhases;
  int64_t tasks[kMostPhases] = {};
  for (int phase = 0; phase < phases; ++phase) tasks[phase] = s.phases[phase].grid.tasks();
  run_phases(tasks, phases, s.scratch_bytes,
             [&](int phase, int64_t task, void* scratch) { run_task(g, s, phase, task, shared, scratch); });
  STD_TORCH_CHECK(plan_fits(g, s, shared), op, ": plan is of a mask that has fewer weights than bits");
}

Tensor forward(const char* op, const Tensor& input, const Tensor& weight, const Tensor& bits,
               const std::vector<Tensor>& plan, const std::optional<Tensor>& bias, const Geometry& geometry) {
  MaskedConv g{};
  Operands keep;
  g.pass = Pass::forward;
  g.dtype = dtype_of(input, op, "input");
  g.shape = forward_shape(op, input, weight, bias, geometry);
  const Tensor w = as_contiguous(weight);
  g.weight = w.const_data_ptr(), g.weight_ld = g.shape.columns();
  attach_bits(g, keep, bits, plan, g.shape.out, g.shape.columns(), op, g.shape.taps());
  attach_ordered(g, keep, plan, weight.scalar_type(), op);
  if (bias) {
    keep.bias = as_contiguous(*bias);
    g.bias = keep.bias.const_data_ptr();
  }
  if (g.shape.pixels() == 0 || g.shape.out == 0)
    return empty_image(input, g.shape.batch, g.shape.out, g.shape.out_h, g.shape.out_w);
  if (g.shape.columns() == 0) return convolution_of_nothing(g.shape, input, weight, bias);
  g.library = true;
  const Tensor x = as_image(input);
  g.input = image_of(x);  // the schedule knows where pixels lie
  g.channels_last = is_channels_last(x);
  const ConvSchedule s = schedule(g, isa_in_use(), (int)torch::stable::get_num_threads());
  if (s.kernel == Kernel::library) return library_forward(g, input, w, bias, s.isa);
  Tensor out = empty_image(input, g.shape.batch, g.shape.out, g.shape.out_h, g.shape.out_w);
  g.output = image_of(out);
  run(op, g, s);
  return out;
}

Tensor zeros(Tensor image) { return torch::stable::zero_(image); }

Tensor input_grad(const char* op, const Tensor& grad, const Tensor& weight, const Tensor& bits,
                  const std::vector<Tensor>& plan, const Ints& size, const Geometry& geometry) {
  MaskedConv g{};
  Operands keep;
  g.pass = Pass::input_grad;
  g.dtype = dtype_of(grad, op, "grad");
  g.shape = input_grad_shape(op, grad, weight, size, geometry);
  const Tensor w = as_contiguous(weight);
  g.weight = w.const_data_ptr(), g.weight_ld = g.shape.columns();
  attach_bits(g, keep, bits, plan, g.shape.out, g.shape.columns(), op, g.shape.taps());
  if (g.shape.columns() == 0 || g.shape.out == 0)
    return zeros(empty_image(grad, g.shape.batch, g.shape.in, g.shape.in_h, g.shape.in_w));
  g.library = true;
  const Tensor dy = as_image(grad);
  g.output = image_of(dy);
  g.channels_last = is_channels_last(dy);
  const ConvSchedule s = schedule(g, isa_in_use(), (int)torch::stable::get_num_threads());
  if (s.kernel == Kernel::library) return library_input_grad(g, grad, w, s.isa);
  Tensor out = empty_image(grad, g.shape.batch, g.shape.in, g.shape.in_h, g.shape.in_w);
  if (g.shape.pixels() == 0) return torch::stable::zero_(out);
  g.input = image_of(out);
  run(op, g, s);
  return out;
}

Tensor weight_grad(const char* op, const Tensor& grad, const Tensor& input, const Tensor& bits,
                   const std::vector<Tensor>& plan, const Ints& kernel, const Geometry& geometry) {
  MaskedConv g{};
  Operands keep;
  g.pass = Pass::weight_grad;
  g.dtype = dtype_of(grad, op, "grad");
  g.shape = weight_grad_shape(op, grad, input, kernel, geometry);
  attach_bits(g, keep, bits, plan, g.shape.out, g.shape.columns(), op, g.shape.taps());
  g.library = true;
  const Tensor x = as_image(input), dy = as_image(grad);
  g.input = image_of(x), g.output = image_of(dy);
  g.channels_last = is_channels_last(x);
  const ConvSchedule s = schedule(g, isa_in_use(), (int)torch::stable::get_num_threads());
  const bool nothing = g.shape.pixels() == 0 || g.shape.columns() == 0 || g.shape.out == 0;
  if (s.kernel == Kernel::library && !nothing) return library_weight_grad(g, grad, input, s.isa);
  const int64_t shape[] = {g.shape.out, g.shape.in / g.shape.groups, g.shape.kernel_h, g.shape.kernel_w};
  Tensor out = new_tensor(grad, shape, 4);
  if (nothing) return torch::stable::zero_(out);
  g.weight_grad = out.mutable_data_ptr(), g.weight_grad_ld = g.shape.columns();
  run(op, g, s);
  return out;
}

Tensor masked_conv2d(const Tensor& input, const Tensor& weight, const Tensor& bits, const std::vector<Tensor>& plan,
                     const std::optional<Tensor>& bias, Ints stride, Ints padding, Ints dilation, int64_t groups) {
  return forward("masked_conv2d", input, weight, bits, plan, bias, {stride, padding, dilation, groups});
}
Tensor masked_conv2d_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& bits,
                                const std::vector<Tensor>& plan, Ints input_size, Ints stride, Ints padding,
                                Ints dilation, int64_t groups) {
  return input_grad("masked_conv2d_input_grad", grad, weight, bits, plan, input_size,
                    {stride, padding, dilation, groups});
}
Tensor masked_conv2d_weight_grad(const Tensor& grad, const Tensor& input, const Tensor& bits,
                                 const std::vector<Tensor>& plan, Ints kernel_size, Ints stride, Ints padding,
                                 Ints dilation, int64_t groups) {
  return weight_grad("masked_conv2d_weight_grad", grad, input, bits, plan, kernel_size,
                     {stride, padding, dilation, groups});
}

// The active weights in the order of the plan; nothing where no kernel would read them.
std::vector<Tensor> masked_conv2d_pack(const Tensor& weight, const Tensor& bits, const std::vector<Tensor>& plan) {
  constexpr const char* kOp = "masked_conv2d_pack";
  MaskedGemm g{};
  Operands keep;
  g.pass = Pass::forward;
  g.dtype = dtype_of(weight, kOp, "weight");
  check_weight(weight, kOp);
  const Tensor w = as_contiguous(weight);
  g.n = weight.size(0), g.k = weight.size(1) * weight.size(2) * weight.size(3);
  g.b = w.const_data_ptr(), g.b_ld = g.k;
  attach_bits(g, keep, bits, plan, g.n, g.k, kOp);
  const Tensor ordered = ordered_weights(g, w);
  return ordered.size(0) > 0 ? std::vector<Tensor>{ordered} : std::vector<Tensor>{};
}

// The kernels that could run a convolution, as masked_linear_candidates has them. `input_size` is [batch, in, h, w].
std::string masked_conv2d_candidates(std::string pass, Ints input_size, Ints kernel_size, const Tensor& bits,
                                     const std::vector<Tensor>& plan, Ints stride, Ints padding, Ints dilation,
                                     int64_t groups, ScalarType type, bool channels_last) {
  constexpr const char* kOp = "masked_conv2d_candidates";
  MaskedConv g{};
  Operands keep;
  g.library = true, g.channels_last = channels_last;
  g.dtype = dtype_of(type, kOp, "dtype");
  g.pass = pass == "forward"       ? Pass::forward
           : pass == "input_grad"  ? Pass::input_grad
           : pass == "weight_grad" ? Pass::weight_grad
                                   : throw std::invalid_argument(std::string(kOp) + ": there is no pass " + pass);
  STD_TORCH_CHECK(input_size.size() == 4 && kernel_size.size() == 2 && bits.dim() == 2, kOp,
                  ": input_size must have 4 numbers, kernel_size 2, and bits be [out, words]");
  g.shape = shape_of_conv({stride, padding, dilation, groups}, input_size[0], input_size[1], input_size[2],
                          input_size[3], bits.size(0), kernel_size[0], kernel_size[1], kOp);
  attach_bits(g, keep, bits, plan, g.shape.out, g.shape.columns(), kOp, g.shape.taps());
  if (g.pass == Pass::forward) attach_ordered(g, keep, plan, type, kOp);
  Candidate list[kMostCandidates];
  return describe_candidates(
      list, candidates(g, ActiveChannels(g), isa_in_use(), (int)torch::stable::get_num_threads(), list));
}

void prefer_masked_conv2d_kernel(std::string name) {
  STD_TORCH_CHECK(prefer_conv_kernel(name.c_str()), "prefer_masked_conv2d_kernel: there is no kernel ", name);
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CPU, m) {
  m.impl("masked_conv2d", TORCH_BOX(&maskfuse::masked_conv2d));
  m.impl("masked_conv2d_unrecorded", TORCH_BOX(&maskfuse::masked_conv2d));
  m.impl("masked_conv2d_pack", TORCH_BOX(&maskfuse::masked_conv2d_pack));
  m.impl("masked_conv2d_input_grad", TORCH_BOX(&maskfuse::masked_conv2d_input_grad));
  m.impl("masked_conv2d_weight_grad", TORCH_BOX(&maskfuse::masked_conv2d_weight_grad));
}

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CompositeExplicitAutograd, m) {
  m.impl("masked_conv2d_candidates", TORCH_BOX(&maskfuse::masked_conv2d_candidates));
  m.impl("prefer_masked_conv2d_kernel", TORCH_BOX(&maskfuse::prefer_masked_conv2d_kernel));
}
