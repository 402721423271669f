// Dispatcher op channel_scatter on the CPU: the inverse of the index, then a copy or a sum.
#include "../cpu/channel_scatter.h"

#include "channel_index.h"
#include "channel_sum.h"

namespace maskfuse {
namespace {

constexpr const char* kOp = "channel_scatter";

// The positions of each entry of an index: of one list, or of each row's own.
struct Inverse {
  Indices first, next;
  bool repeated;
};

Inverse inverse(const Indices& index, int64_t rows, int64_t count, int64_t size) {
  Inverse result{indices(rows * size), indices(rows * count), false};
  std::atomic<bool> repeated{false};
  for_index_rows(rows, size + count, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      if (invert_indices(index.get() + r * count, count, size, result.first.get() + r * size,
                         result.next.get() + r * count))
        repeated = true;
  });
  result.repeated = repeated;
  return result;
}

// Where `unique`, an index that names a channel of a sample, or a sample, twice is an error; else those are added.
Tensor channel_scatter(const Tensor& input, const Tensor& channels, int64_t num_channels,
                       const std::optional<Tensor>& batch, int64_t batch_size, bool unique) {
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
  const Inverse channel = inverse(resolved(channels, num_channels, kOp, "channels"), rows, count, num_channels);
  STD_TORCH_CHECK(!unique || !channel.repeated, kOp, ": channels ", shape_of(channels), " has an index twice");
  Inverse sample{};
  if (batch) {
    sample = inverse(resolved(*batch, batch_size, kOp, "batch"), 1, in.samples, batch_size);
    STD_TORCH_CHECK(!unique || !sample.repeated, kOp, ": batch ", shape_of(*batch), " has an index twice");
  }

  ChannelCopy copy;
  Tensor out = result_of(in, batch_size, num_channels, &copy);
  if (filled_with_zero(in, copy)) return out;
  copy.sample = sample.first.get(), copy.channel = channel.first.get();
  copy.rows = rows > 1 ? num_channels : 0, copy.rows_of_input = true;
  if (channel.repeated || sample.repeated) {
    const std::optional<Addend> a = addend(input.scalar_type());
    STD_TORCH_CHECK(a, kOp, ": there is no sum of ", name_of(input.scalar_type()),
                    " for channels that are named more than once");
    const ChannelSum sum{copy, a->number, a->parts, sample.next.get(), channel.next.get(), rows > 1 ? count : 0};
    for_units(copy, [&](int64_t begin, int64_t end) { sum_channels(sum, begin, end); });
  } else {
    for_units(copy, [&](int64_t begin, int64_t end) { copy_channels(copy, begin, end); });
  }
  return out;
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CPU, m) { m.impl("channel_scatter", TORCH_BOX(&maskfuse::channel_scatter)); }
