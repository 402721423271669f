// Dispatcher op channel_scatter on CUDA: the inverse of the index, then a sum, most of whose channels have one addend.
#include "../cuda/channel_gather.h"
#include "../cuda/channel_inverse.h"
#include "../cuda/channel_scatter.h"
#include "channel_sum.h"
#include "cuda_channel_index.h"

namespace maskfuse {
namespace {

constexpr const char* kOp = "channel_scatter";

// Whatever `unique` says, what an index names twice is added: the device does not know it before. Of a dtype that has
// no sum, the first is taken.
Tensor channel_scatter(const Tensor& input, const Tensor& channels, int64_t num_channels,
                       const std::optional<Tensor>& batch, int64_t batch_size, bool unique) {
  const Tensor* const batch_index = batch ? &*batch : nullptr;
  const OneDevice guard(kOp, {{&input, "input"}, {&channels, "channels"}, {batch_index, "batch"}});
  const Activation in = activation(input, kOp, "input");
  check_axis(num_channels, kOp, "num_channels");
  check_axis(batch_size, kOp, "batch_size");
  const int64_t count = channel_count(channels, in.samples, kOp), rows = channels.dim() == 2 ? in.samples : 1;
  STD_TORCH_CHECK(in.channels == count, kOp, ": input ", shape_of(input), " does not fit channels ",
                  shape_of(channels));
  if (batch)
    check_shape(*batch, {in.samples}, kOp, "batch");
  else
    STD_TORCH_CHECK(in.samples == batch_size, kOp, ": input must have ", batch_size, " samples, got ", shape_of(input));
  const DeviceIndex channel = device_index(&channels, num_channels, unique, kOp, "channels");
  const DeviceIndex sample = device_index(batch_index, batch_size, unique, kOp, "batch");

  ChannelCopy copy;
  Tensor out = result_of(in, batch_size, num_channels, &copy);
  if (filled_with_zero(in, &out)) return out;
  // Four lists one behind the other: the first positions of channels and samples, the next positions of both.
  const int64_t lengths[] = {rows * num_channels, batch ? batch_size : 0, rows * count, batch ? in.samples : 0};
  Tensor lists = positions(input, lengths[0] + lengths[1] + lengths[2] + lengths[3]);
  auto* const first_channel = (int32_t*)lists.mutable_data_ptr();
  int32_t *const first_sample = first_channel + lengths[0], *const next_channel = first_sample + lengths[1],
                 *const next_sample = next_channel + lengths[2];
  const cudaStream_t stream = current_stream(input);
  check_launch(cuda::channel_inverse({channel.list, rows, count, first_channel, next_channel},
                                     batch ? cuda::ChannelInverse{sample.list, 1, in.samples, first_sample, next_sample}
                                           : cuda::ChannelInverse{},
                                     stream),
               kOp);
  copy.sample = batch ? first_sample : nullptr, copy.channel = first_channel;
  copy.rows = rows > 1 ? num_channels : 0, copy.rows_of_input = true;
  const std::optional<Addend> a = addend(input.scalar_type());
  check_launch(
      a ? cuda::channel_scatter(
              {copy, a->number, a->parts, batch ? next_sample : nullptr, next_channel, rows > 1 ? count : 0}, stream)
        : cuda::channel_gather(copy, cuda::plain_list(first_channel, count),
                               batch ? cuda::plain_list(first_sample, in.samples) : cuda::ChannelList{}, stream),
      kOp);
  return out;
}

}  // namespace
}  // namespace maskfuse

MASKFUSE_CUDA_IMPL(m) { m.impl("channel_scatter", TORCH_BOX(&maskfuse::channel_scatter)); }
