// Dispatcher ops of masked_linear on CUDA.
#include "../cuda/mask_lists.h"
#include "../cuda/masked_linear.h"
#include "cuda_choice.h"
#include "cuda_library.h"
#include "cuda_masked_linear_library.h"
#include "masked_linear_ops.h"

namespace maskfuse {
namespace {

// A plan's tensors: mask_lists' two; where whole rows and columns are masked, the four of ActiveChannels; and where the
// weight is packed what masked_linear_pack gave: data and offsets (masked_linear_pack.h), and a tensor without elements
// whose type and sizes describe these: a call must not wait for the device to read numbers there.
constexpr size_t kLists = 2, kActive = 4, kPacked = 3;
bool has_active(const std::vector<Tensor>& plan) {
  return plan.size() == kLists + kActive || plan.size() == kLists + kActive + kPacked;
}
bool has_packed(const std::vector<Tensor>& plan) {
  return plan.size() == kLists + kPacked || plan.size() == kLists + kActive + kPacked;
}
enum Form { kNothing, kRows, kColumns, kUnit, kLongest, kFormDims };

struct Cuda {
  using Guard = OneDevice;
  struct Operands {
    Tensor mask, bias, lists;
    cuda::PackedTiles tiles;
  };
  struct Problem : cuda::MaskedGemm {
    std::optional<ActiveChannels> active;
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
    if (plan.empty()) return;
    STD_TORCH_CHECK(plan.size() == kLists || has_active(plan) || has_packed(plan), op,
                    ": plan must have no tensors, or lists of rows and of channels, then active channels and a packed"
                    " weight if there are such, got ",
                    plan.size());
    for (const Tensor& t : plan) const OneDevice guard(op, {{&bits, "bits"}, {&t, "plan"}});
    if (has_active(plan)) g.active = active_channels(&plan[kLists], rows, columns, op), g.channels = true;
    const bool of_rows = g.pass != Pass::input_grad;
    const Tensor& lists = plan[of_rows ? 0 : 1];
    const cuda::ListShape shape =
        of_rows ? cuda::lists_of_rows(rows, 1, columns) : cuda::lists_of_channels(rows, 1, columns);
    check_dtype(lists, ScalarType::Int, op, "plan");
    if (lists.size(0) == 0) return;  // of a mask whose blocks are not worth leaving out
    check_shape(lists, {shape.groups, 1 + shape.blocks}, op, of_rows ? "plan[0]" : "plan[1]");
    keep.lists = as_contiguous(lists);
    g.lists = (const int32_t*)keep.lists.const_data_ptr();
  }

  static void attach_packed(Problem& g, Operands& keep, const std::vector<Tensor>& plan, const Tensor& weight,
                            const char* op) {
    if (!has_packed(plan)) return;
    const Tensor* const packed = &plan[plan.size() - kPacked];
    const Tensor &data = packed[0], &offsets = packed[1], &form = packed[2];
    STD_TORCH_CHECK(data.scalar_type() == ScalarType::Byte && data.dim() == 1 && data.is_contiguous() &&
                        (uintptr_t)data.const_data_ptr() % 16 == 0 && offsets.scalar_type() == ScalarType::Int &&
                        offsets.dim() == 1 && offsets.is_contiguous() && form.dim() == kFormDims,
                    op, ": plan does not hold a packed weight");
    const int64_t rows = form.size(kRows), columns = form.size(kColumns), unit = form.size(kUnit);
    STD_TORCH_CHECK(has_shape(weight, {rows, columns}), op, ": plan holds a packed weight of shape [", rows, ", ",
                    columns, "], weight has ", shape_of(weight));
    STD_TORCH_CHECK((unit == 1 || unit == 2) && offsets.size(0) == cuda::decode_slabs(rows, columns) + 2, op,
                    ": plan does not hold a packed weight");
    const ScalarType type = weight.scalar_type();
    if (form.scalar_type() != type) return;  // packed in another dtype than a cast call runs in
    keep.tiles = {data.const_data_ptr(),
                  (const uint32_t*)offsets.const_data_ptr(),
                  rows,
                  columns,
                  dtype_of(type, op, "weight"),
                  (int)unit,
                  form.size(kLongest)};
    g.tiles = &keep.tiles;
  }

  static void run(Problem& g, const Tensor& out, const char* op) {
    if (g.m == 0 || g.n == 0) return;
    const cuda::LinearChoice choice = cuda::choose(g, device_of(out));
    if (choice.kernel == cuda::LinearKernel::library)
      return g.active ? run_library(g, *g.active, out, op) : run_library(g, out, op);
    Tensor workspace;
    if (choice.workspace_bytes > 0)
      workspace = torch::stable::new_empty(out, {choice.workspace_bytes}, ScalarType::Byte);
    check_launch(cuda::masked_linear(g, choice, choice.workspace_bytes > 0 ? workspace.mutable_data_ptr() : nullptr,
                                     current_stream(out)),
                 op);
  }
};

// The active weights alone, for calls of few rows. Waits for the device, which counts them.
std::vector<Tensor> masked_linear_pack(const Tensor& weight, const Tensor& bits, const std::vector<Tensor>& /*plan*/) {
  constexpr const char* kOp = "masked_linear_pack";
  const OneDevice guard(kOp, {{&weight, "weight"}, {&bits, "bits"}});
  STD_TORCH_CHECK(weight.dim() == 2, kOp, ": weight must have shape [out, in], got ", shape_of(weight));
  const Dtype dtype = dtype_of(weight, kOp, "weight");
  const Matrix w = as_matrix(weight, kOp, "weight");
  check_bits(bits, w.rows, w.columns, kOp);
  const Tensor from = as_contiguous(bits);
  const auto* const words = (const uint32_t*)from.const_data_ptr();
  const int64_t slabs = cuda::decode_slabs(w.rows, w.columns), piece = 16;
  Tensor offsets = torch::stable::new_empty(bits, {slabs + 2});
  auto* const begins = (uint32_t*)offsets.mutable_data_ptr();
  const cudaStream_t stream = current_stream(weight);
  uint32_t found[2] = {};  // pieces of all slabs, of the longest one
  const auto count = [&](int unit) {
    check_launch(cuda::decode_count(words, w.rows, w.columns, dtype, unit, begins, stream), kOp);
    read_back(offsets, slabs * 4, sizeof(found), found, kOp);
  };
  count(1);
  // Nearly the number of active weights: a slab's bits take 16 pieces, and its values are whole pieces.
  const int64_t active = std::max<int64_t>(0, (int64_t)found[0] - 16 * slabs) * piece / dtype_size(dtype);
  const int unit = cuda::decode_unit(dtype, active, w.rows * w.columns);
  if (unit != 1) count(unit);
  const int64_t bytes = found[0] * piece;
  Tensor data = torch::stable::new_empty(weight, {bytes}, ScalarType::Byte);
  check_launch(
      cuda::decode_pack(words, w.data(), w.ld, w.rows, w.columns, dtype, unit, begins, data.mutable_data_ptr(), stream),
      kOp);
  return {data, offsets, torch::stable::new_empty(weight, {0, w.rows, w.columns, unit, found[1]})};
}

// Which kernel runs a product of contiguous operands under a mask of bits on a device of that many multiprocessors and
// that compute capability (ten times), and how it cuts it, by the function that chooses for real.
std::string masked_linear_choice(std::string pass, int64_t batch, int64_t out, int64_t in, ScalarType type,
                                 bool channels, bool lists, int64_t multiprocessors, int64_t capability) {
  constexpr const char* kOp = "masked_linear_choice";
  cuda::MaskedGemm g{};
  STD_TORCH_CHECK(multiprocessors > 0 && batch >= 0 && out >= 0 && in >= 0, kOp,
                  ": multiprocessors must be positive and sizes must not be negative");
  g.dtype = dtype_of(type, kOp, "dtype"), g.channels = channels;
  g.pass = pass_of(pass, kOp);
  g.bits = (const uint32_t*)alignof(uint32_t);  // there are some
  g.lists = lists ? (const int32_t*)alignof(int32_t) : nullptr;
  g.a_ld = g.pass == Pass::forward ? in : out, g.b_ld = in, g.c_ld = g.pass == Pass::forward ? out : in;
  if (g.pass == Pass::forward)
    g.m = batch, g.n = out, g.k = in;
  else if (g.pass == Pass::input_grad)
    g.m = batch, g.n = in, g.k = out;
  else
    g.m = out, g.n = in, g.k = batch;
  return describe(cuda::choose(g, {{(int)multiprocessors, 0}, (int)capability, library_use}));
}

// When products are left to torch's library: never, where it is faster, or always; returns what it was.
std::string use_masked_library(std::string when) {
  constexpr const char* kNames[] = {"never", "faster", "always"};
  for (int i = 0; i < 3; ++i)
    if (when == kNames[i]) return kNames[(int)library_use.exchange((cuda::Library)i)];
  STD_TORCH_CHECK(false, "use_masked_library: when must be never, faster or always, got ", when);
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
  m.impl("masked_linear_pack", TORCH_BOX(&maskfuse::masked_linear_pack));
}

MASKFUSE_CUDA_COMPOSITE(m) {
  m.impl("masked_linear_choice", TORCH_BOX(&maskfuse::masked_linear_choice));
  m.impl("use_masked_library", TORCH_BOX(&maskfuse::use_masked_library));
}
