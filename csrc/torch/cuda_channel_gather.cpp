// Dispatcher op channel_gather on CUDA: checks, then one launch.
#include "../cuda/channel_gather.h"
#include "cuda_channel_index.h"

namespace maskfuse {
namespace {

constexpr const char* kOp = "channel_gather";

Tensor channel_gather(const Tensor& input, const Tensor& channels, int64_t num_channels,
                      const std::optional<Tensor>& batch, int64_t batch_size) {
  const Tensor* const batch_index = batch ? &*batch : nullptr;
  const OneDevice guard(kOp, {{&input, "input"}, {&channels, "channels"}, {batch_index, "batch"}});
  const Activation in = activation(input, kOp, "input");
  STD_TORCH_CHECK(in.channels == num_channels && in.samples == batch_size, kOp, ": input must have ", batch_size,
                  " samples of ", num_channels, " channels, got ", shape_of(input));
  STD_TORCH_CHECK(!batch || batch->dim() == 1, kOp, ": batch must have shape [samples], got ", shape_of(*batch));
  const int64_t samples = batch ? batch->size(0) : in.samples, count = channel_count(channels, samples, kOp);
  check_axis(samples, kOp, "the number of samples");
  const DeviceIndex channel = device_index(&channels, in.channels, false, kOp, "channels");
  const DeviceIndex sample = device_index(batch_index, in.samples, false, kOp, "batch");
  ChannelCopy copy;
  Tensor out = result_of(in, samples, count, &copy);
  if (filled_with_zero(in, &out)) return out;
  copy.rows = channels.dim() == 2 ? count : 0;
  check_launch(cuda::channel_gather(copy, channel.list, sample.list, current_stream(input)), kOp);
  return out;
}

}  // namespace
}  // namespace maskfuse

MASKFUSE_CUDA_IMPL(m) { m.impl("channel_gather", TORCH_BOX(&maskfuse::channel_gather)); }
