// Dispatcher ops channel_select and channel_select_input_grad on the CPU: a mask a sample becomes lists of channels.
#include "../cpu/channel_scatter.h"
#include "channel_index.h"

namespace maskfuse {
namespace {

// The lists of a mask [samples, channels]: `count` entries a sample.
template <class List>
Indices lists_of(const Tensor& mask, int64_t count, const List& list) {
  const Tensor from = as_contiguous(mask);
  const auto* const bytes = (const uint8_t*)from.const_data_ptr();
  const int64_t samples = mask.size(0), channels = mask.size(1);
  Indices result = indices(samples * count);
  for_index_rows(samples, channels + count, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) list(bytes + n * channels, result.get() + n * count);
  });
  return result;
}

Tensor run(const Activation& in, int64_t count, const Indices& lists) {
  ChannelCopy copy;
  Tensor out = result_of(in, in.samples, count, &copy);
  if (filled_with_zero(in, copy)) return out;
  copy.channel = lists.get(), copy.rows = count;
  for_units(copy, [&](int64_t begin, int64_t end) { copy_channels(copy, begin, end); });
  return out;
}

// The active channels of each sample in rising order, then zeros, max_channels in all.
Tensor channel_select(const Tensor& input, const Tensor& mask, int64_t max_channels) {
  constexpr const char* kOp = "channel_select";
  const Activation in = activation(input, kOp, "input");
  check_dtype(mask, ScalarType::Bool, kOp, "mask");
  check_shape(mask, {in.samples, in.channels}, kOp, "mask");
  check_axis(max_channels, kOp, "max_channels");
  return run(in, max_channels, lists_of(mask, max_channels, [&](const uint8_t* active, int32_t* to) {
               active_channels(active, in.channels, max_channels, to);
             }));
}

// The adjoint: the selected channels back in their places.
Tensor channel_select_input_grad(const Tensor& grad, const Tensor& mask, int64_t max_channels) {
  constexpr const char* kOp = "channel_select_input_grad";
  const Activation in = activation(grad, kOp, "grad");
  check_dtype(mask, ScalarType::Bool, kOp, "mask");
  STD_TORCH_CHECK(mask.dim() == 2 && mask.size(0) == in.samples && in.channels == max_channels, kOp,
                  ": grad must have ", max_channels, " channels and mask a row a sample, got ", shape_of(grad), " and ",
                  shape_of(mask));
  const int64_t channels = mask.size(1);
  check_axis(channels, kOp, "the number of channels");
  return run(in, channels, lists_of(mask, channels, [&](const uint8_t* active, int32_t* to) {
               invert_mask(active, channels, max_channels, to);
             }));
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CPU, m) {
  m.impl("channel_select", TORCH_BOX(&maskfuse::channel_select));
  m.impl("channel_select_input_grad", TORCH_BOX(&maskfuse::channel_select_input_grad));
}
