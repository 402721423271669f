#include "masked_conv2d_library.h"

#include <array>
#include <vector>

#include "image.h"

namespace maskfuse {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// Elements that are worth a thread.
constexpr int64_t kGrain = 16384;

MaskedGemm rows_of(const MaskedConv& g) {
  MaskedGemm w{};
  w.pass = g.pass, w.dtype = g.dtype;
  w.b = g.weight, w.b_ld = g.weight_ld;
  w.bits = g.bits, w.bits_ld = g.bits_ld;
  return w;
}

// Calls kernel(problem, part) for the weight's rows.
void for_rows(const MaskedConv& g, const MaskedGemm& w, Task kernel, char* copy) {
  const int64_t rows = g.shape.out, columns = g.shape.columns(), size = dtype_size(g.dtype);
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns)),
                              [&](int64_t begin, int64_t end) {
                                char* const to_rows = copy ? copy + begin * columns * size : nullptr;
                                kernel(w, {begin, end, 0, columns, 0, to_rows, nullptr});
                              });
}

// The weight with zeros where it is masked; [out, in / groups, kernel_h, kernel_w], contiguous.
Tensor masked_copy(const MaskedConv& g, const Tensor& weight, Isa isa) {
  const int64_t shape[] = {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  Tensor copy = empty_cpu(weight, shape, 4);
  for_rows(g, rows_of(g), masked_linear_kernels(isa)->masked_copy[(int)g.dtype][0], (char*)copy.mutable_data_ptr());
  return copy;
}

std::vector<int64_t> pair(int64_t h, int64_t w) { return {h, w}; }

// The gradient of the input, or of the weight. Of the operand itself only the shape is read.
Tensor backward(const MaskedConv& g, const Tensor& grad, const Tensor& input, const Tensor& weight, bool of_input) {
  const ConvShape& s = g.shape;
  const bool wanted[] = {of_input, !of_input, false};
  StableIValue stack[] = {from(grad),
                          from(input),
                          from(weight),
                          from(std::optional<std::vector<int64_t>>()),
                          from(pair(s.stride_h, s.stride_w)),
                          from(pair(s.pad_h, s.pad_w)),
                          from(pair(s.dilation_h, s.dilation_w)),
                          from(false),
                          from(pair(0, 0)),
                          from(s.groups),
                          from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted, 3))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack, TORCH_ABI_VERSION));
  const Tensor results[] = {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
  return results[of_input ? 0 : 1];
}

}  // namespace

Tensor library_forward(const MaskedConv& g, const Tensor& input, const Tensor& weight,
                       const std::optional<Tensor>& bias, Isa isa) {
  const ConvShape& s = g.shape;
  StableIValue stack[] = {from(input),
                          from(masked_copy(g, weight, isa)),
                          from(bias),
                          from(pair(s.stride_h, s.stride_w)),
                          from(pair(s.pad_h, s.pad_w)),
                          from(pair(s.dilation_h, s.dilation_w)),
                          from(false),
                          from(pair(0, 0)),
                          from(s.groups)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack, TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

Tensor library_input_grad(const MaskedConv& g, const Tensor& grad, const Tensor& weight, Isa isa) {
  const ConvShape& s = g.shape;
  // Its shape is all that is read of it.
  const Tensor input = empty_image(grad, s.batch, s.in, s.in_h, s.in_w);
  return backward(g, grad, input, masked_copy(g, weight, isa), true);
}

Tensor library_weight_grad(const MaskedConv& g, const Tensor& grad, const Tensor& input, Isa isa) {
  const ConvShape& s = g.shape;
  const int64_t shape[] = {s.out, s.in / s.groups, s.kernel_h, s.kernel_w};
  Tensor result = as_contiguous(backward(g, grad, input, empty_cpu(grad, shape, 4), false));
  MaskedGemm w = rows_of(g);
  w.c = result.mutable_data_ptr(), w.c_ld = s.columns();
  for_rows(g, w, masked_linear_kernels(isa)->masked_result[(int)g.dtype][0], nullptr);
  return result;
}

}  // namespace maskfuse
