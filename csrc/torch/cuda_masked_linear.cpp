// Dispatcher ops of masked_linear on CUDA.
#include "../cuda/mask_lists.h"
#include "../cuda/masked_linear.h"
#include "cuda_library.h"
#include "masked_linear_ops.h"

namespace maskfuse {
namespace {

struct Cuda {
  using Problem = cuda::MaskedGemm;
  using Guard = OneDevice;
  struct Operands {
    Tensor mask, bias, lists;
  };

  // Bits over rows x columns weights, and what mask_lists made of them: lists of rows, lists of channels.
  static void attach_bits(Problem& g, Operands& keep, const Tensor& bits, const std::vector<Tensor>& plan, int64_t rows,
                          int64_t columns, const char* op) {
    check_bits(bits, rows, columns, op);
    keep.mask = as_contiguous(bits);
    g.bits = (const uint32_t*)keep.mask.const_data_ptr();
    g.bits_ld = mask_words(columns);
    // An empty mask has no storage, and null would mean "factors". Nothing of it is read.
    if (!g.bits) g.bits = (const uint32_t*)alignof(uint32_t);
    if (plan.empty() || g.pass == Pass::weight_grad) return;
    STD_TORCH_CHECK(plan.size() >= 2, op, ": plan must have no tensors, or lists of rows and of channels, got ",
                    plan.size());
    const bool of_rows = g.pass == Pass::forward;
    const Tensor& lists = plan[of_rows ? 0 : 1];
    const OneDevice guard(op, {{&bits, "bits"}, {&lists, "plan"}});
    const cuda::ListShape shape =
        of_rows ? cuda::lists_of_rows(rows, 1, columns) : cuda::lists_of_channels(rows, 1, columns);
    check_dtype(lists, ScalarType::Int, op, "plan");
    check_shape(lists, {shape.groups, 1 + shape.blocks}, op, of_rows ? "plan[0]" : "plan[1]");
    keep.lists = as_contiguous(lists);
    g.lists = (const int32_t*)keep.lists.const_data_ptr();
  }

  static void attach_packed(Problem&, Operands&, const std::vector<Tensor>&, ScalarType, int64_t, const char*) {}

  static void run(Problem& g, const Tensor& out, const char* op) {
    if (g.m == 0 || g.n == 0) return;
    const cuda::LinearChoice choice = cuda::choose(g, multiprocessors(out));
    Tensor workspace;
    if (choice.workspace_bytes > 0)
      workspace = torch::stable::new_empty(out, {choice.workspace_bytes}, ScalarType::Byte);
    check_launch(cuda::masked_linear(g, choice, choice.workspace_bytes > 0 ? workspace.mutable_data_ptr() : nullptr,
                                     current_stream(out)),
                 op);
  }
};

// Which kernel runs a product on a device of that many multiprocessors, and how it cuts it, by the function that
// chooses for real.
std::string masked_linear_choice(std::string pass, int64_t batch, int64_t out, int64_t in, ScalarType type,
                                 int64_t multiprocessors) {
  constexpr const char* kOp = "masked_linear_choice";
  cuda::MaskedGemm g{};
  g.dtype = dtype_of(type, kOp, "dtype");
  if (pass == "forward")
    g.pass = Pass::forward, g.m = batch, g.n = out, g.k = in;
  else if (pass == "input_grad")
    g.pass = Pass::input_grad, g.m = batch, g.n = in, g.k = out;
  else if (pass == "weight_grad")
    g.pass = Pass::weight_grad, g.m = out, g.n = in, g.k = batch;
  else
    STD_TORCH_CHECK(false, kOp, ": direction must be forward, input_grad or weight_grad, got ", pass);
  const cuda::LinearChoice choice = cuda::choose(g, (int)multiprocessors);
  std::string text = cuda::kernel_name(choice.kernel);
  if (choice.kernel == cuda::LinearKernel::product) text += choice.large ? " 128x128" : " 64x64";
  if (choice.splits > 1) text += " in " + std::to_string(choice.splits) + " parts";
  return text;
}

// Lists of rows and of channels, and for a convolution the bits by taps, which its kernels read.
std::vector<Tensor> mask_lists(const Tensor& bits, int64_t columns, int64_t taps) {
  constexpr const char* kOp = "mask_lists";
  const OneDevice guard(kOp, {{&bits, "bits"}});
  STD_TORCH_CHECK(bits.dim() == 2 && columns >= 0 && taps >= 1 && columns % taps == 0, kOp,
                  ": bits must have shape [rows, words] and taps divide columns, got ", shape_of(bits), ", ", columns,
                  " columns and ", taps, " taps");
  check_bits(bits, bits.size(0), columns, kOp);
  const int64_t rows = bits.size(0), channels = columns / taps;
  const cuda::ListShape r = cuda::lists_of_rows(rows, taps, channels),
                        c = cuda::lists_of_channels(rows, taps, channels);
  Tensor by_taps = as_contiguous(bits);
  std::vector<Tensor> plan = {torch::stable::new_empty(bits, {r.groups, 1 + r.blocks}),
                              torch::stable::new_empty(bits, {c.groups, 1 + c.blocks})};
  const cudaStream_t stream = current_stream(bits);
  if (taps > 1) {
    const Tensor from = by_taps;
    by_taps = torch::stable::new_empty(bits, {rows, taps * mask_words(channels)});
    check_launch(cuda::mask_by_taps((const uint32_t*)from.const_data_ptr(), rows, taps, channels,
                                    (uint32_t*)by_taps.mutable_data_ptr(), stream),
                 kOp);
    plan.push_back(by_taps);
  }
  check_launch(cuda::mask_lists((const uint32_t*)by_taps.const_data_ptr(), rows, taps, channels,
                                (int32_t*)plan[0].mutable_data_ptr(), (int32_t*)plan[1].mutable_data_ptr(), stream),
               kOp);
  return plan;
}

}  // namespace
}  // namespace maskfuse

MASKFUSE_CUDA_IMPL(m) {
  maskfuse::MaskedLinearOps<maskfuse::Cuda>::implement(m);
  m.impl("mask_lists", TORCH_BOX(&maskfuse::mask_lists));
}

MASKFUSE_CUDA_COMPOSITE(m) { m.impl("masked_linear_choice", TORCH_BOX(&maskfuse::masked_linear_choice)); }
