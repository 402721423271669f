// Dispatcher op channel_gather on the CPU: checks, then the raw kernel.
#include "../cpu/channel_gather.h"

#include "channel_index.h"

namespace maskfuse {
namespace {

constexpr const char* kOp = "channel_gather";

// num_channels and batch_size are the input's own sizes: the derivative, a scatter, needs them and not the input.
Tensor channel_gather(const Tensor& input, const Tensor& channels, int64_t num_channels,
                      const std::optional<Tensor>& batch, int64_t batch_size) {
  const Activation in = activation(input, kOp, "input");
  STD_TORCH_CHECK(in.channels == num_channels && in.samples == batch_size, kOp, ": input must have ", batch_size,
                  " samples of ", num_channels, " channels, got ", shape_of(input));
  STD_TORCH_CHECK(!batch || batch->dim() == 1, kOp, ": batch must have shape [samples], got ", shape_of(*batch));
  const int64_t samples = batch ? batch->size(0) : in.samples, count = channel_count(channels, samples, kOp);
  check_axis(samples, kOp, "the number of samples");
  const Indices channel = resolved(channels, in.channels, kOp, "channels");
  const Indices sample = batch ? resolved(*batch, in.samples, kOp, "batch") : nullptr;
  ChannelCopy copy;
  Tensor out = result_of(in, samples, count, &copy);
  if (filled_with_zero(in, copy)) return out;
  copy.sample = sample.get(), copy.channel = channel.get(), copy.rows = channels.dim() == 2 ? count : 0;
  for_units(copy, [&](int64_t begin, int64_t end) { copy_channels(copy, begin, end); });
  return out;
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CPU, m) { m.impl("channel_gather", TORCH_BOX(&maskfuse::channel_gather)); }
