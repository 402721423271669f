// Dispatcher ops channel_select and channel_select_input_grad on CUDA: a mask a sample becomes lists of channels.
#include "../cuda/channel_gather.h"
#include "../cuda/channel_select.h"
#include "cuda_channel_index.h"

namespace maskfuse {
namespace {

using MakeLists = cudaError_t (*)(const uint8_t* mask, int64_t samples, int64_t channels, int64_t most, int32_t* to,
                                  cudaStream_t stream);

// A result of `count` channels a sample, by lists made from the mask.
Tensor run(const char* op, const Activation& in, const Tensor& mask, int64_t count, int64_t most, MakeLists make) {
  ChannelCopy copy;
  Tensor out = result_of(in, in.samples, count, &copy);
  if (filled_with_zero(in, &out)) return out;
  const Tensor from = as_contiguous(mask);
  Tensor lists = positions(mask, in.samples * count);
  auto* const list = (int32_t*)lists.mutable_data_ptr();
  const cudaStream_t stream = current_stream(mask);
  check_launch(make((const uint8_t*)from.const_data_ptr(), in.samples, mask.size(1), most, list, stream), op);
  copy.rows = count;
  check_launch(cuda::channel_gather(copy, cuda::plain_list(list, in.channels), {}, stream), op);
  return out;
}

// The active channels of each sample in rising order, then zeros, max_channels in all.
Tensor channel_select(const Tensor& input, const Tensor& mask, int64_t max_channels) {
  constexpr const char* kOp = "channel_select";
  const OneDevice guard(kOp, {{&input, "input"}, {&mask, "mask"}});
  const Activation in = activation(input, kOp, "input");
  check_dtype(mask, ScalarType::Bool, kOp, "mask");
  check_shape(mask, {in.samples, in.channels}, kOp, "mask");
  check_axis(max_channels, kOp, "max_channels");
  return run(kOp, in, mask, max_channels, max_channels, cuda::active_channels);
}

// The adjoint: the selected channels back in their places.
Tensor channel_select_input_grad(const Tensor& grad, const Tensor& mask, int64_t max_channels) {
  constexpr const char* kOp = "channel_select_input_grad";
  const OneDevice guard(kOp, {{&grad, "grad"}, {&mask, "mask"}});
  const Activation in = activation(grad, kOp, "grad");
  check_dtype(mask, ScalarType::Bool, kOp, "mask");
  STD_TORCH_CHECK(mask.dim() == 2 && mask.size(0) == in.samples && in.channels == max_channels, kOp,
                  ": grad must have ", max_channels, " channels and mask a row a sample, got ", shape_of(grad), " and ",
                  shape_of(mask));
  check_axis(mask.size(1), kOp, "the number of channels");
  return run(kOp, in, mask, mask.size(1), max_channels, cuda::active_positions);
}

}  // namespace
}  // namespace maskfuse

MASKFUSE_CUDA_IMPL(m) {
  m.impl("channel_select", TORCH_BOX(&maskfuse::channel_select));
  m.impl("channel_select_input_grad", TORCH_BOX(&maskfuse::channel_select_input_grad));
}
