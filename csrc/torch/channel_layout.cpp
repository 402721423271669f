// Activations as the kernels see them: which memory format, and whether it can be read in place.
#include "channel_layout.h"

#include <cstring>

namespace maskfuse {

// torch's own rule for suggest_memory_format: the strides rise from the channels over the pixels to the samples.
// python/maskfuse/_memory_format.py has the same rule for traced code.
bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 && t.dim() != 5) return false;
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  const auto fits = [&](int64_t d) {
    if (t.size(d) == 0 || t.stride(d) < least) return false;
    if (d == 0 && least == t.stride(1)) return false;  // N111 and N11W: both formats fit, and planes are the usual
    least = t.stride(d) * std::max<int64_t>(1, t.size(d));
    return true;
  };
  if (!fits(1)) return false;
  for (int64_t d = t.dim() - 1; d >= 2; --d)
    if (!fits(d)) return false;
  return fits(0);
}

namespace {

// The distance between pixels where the trailing dimensions are one dimension of equal steps, else -1.
int64_t pixel_stride(const Tensor& t) {
  int64_t stride = 1, next = -1;
  for (int64_t d = t.dim() - 1; d >= 2; --d) {
    if (t.size(d) == 1) continue;
    if (next < 0)
      stride = t.stride(d);
    else if (t.stride(d) != next)
      return -1;
    next = t.stride(d) * t.size(d);
  }
  return stride;
}

}  // namespace

Activation activation(const Tensor& input, const char* op, const char* name) {
  STD_TORCH_CHECK(input.dim() >= 2, op, ": ", name, " must have shape [samples, channels, ...], got ", shape_of(input));
  Activation a{};
  a.channels_last = is_channels_last(input);
  a.tensor = input;
  int64_t stride = pixel_stride(input);
  if (a.channels_last ? stride < 0 : stride != 1) {
    using torch::headeronly::MemoryFormat;
    const auto format = !a.channels_last   ? MemoryFormat::Contiguous
                        : input.dim() == 4 ? MemoryFormat::ChannelsLast
                                           : MemoryFormat::ChannelsLast3d;
    a.tensor = torch::stable::contiguous(input, format);
    stride = pixel_stride(a.tensor);
  }
  a.samples = input.size(0), a.channels = input.size(1), a.pixels = 1;
  for (int64_t d = 2; d < input.dim(); ++d) a.pixels *= input.size(d);
  a.sample_stride = a.tensor.stride(0), a.channel_stride = a.tensor.stride(1), a.pixel_stride = stride;
  check_axis(a.samples, op, "the number of samples");
  check_axis(a.channels, op, "the number of channels");
  return a;
}

Tensor result_of(const Activation& like, int64_t samples, int64_t channels, ChannelCopy* copy) {
  const Tensor& t = like.tensor;
  std::vector<int64_t> sizes(t.sizes().begin(), t.sizes().end());
  sizes[0] = samples, sizes[1] = channels;
  Tensor result;
  if (like.channels_last) {
    std::vector<int64_t> strides(sizes.size());
    strides[1] = 1;
    int64_t step = channels;
    for (int64_t d = t.dim() - 1; d >= 2; --d) strides[d] = step, step *= sizes[d];
    strides[0] = step;
    result = empty_strided_cpu(t, sizes.data(), strides.data(), t.dim());
  } else {
    result = empty_cpu(t, sizes.data(), t.dim());
  }
  const auto element = (int64_t)t.element_size();
  *copy = {};
  copy->samples = samples, copy->channels = channels, copy->pixels = like.pixels, copy->element = element;
  copy->channels_last = like.channels_last || like.pixels == 1, copy->from_channels = like.channels;
  copy->from = (const char*)t.const_data_ptr(), copy->to = (char*)result.mutable_data_ptr();
  copy->from_sample = like.sample_stride * element, copy->from_channel = like.channel_stride * element;
  copy->from_pixel = like.pixel_stride * element;
  return result;
}

bool filled_with_zero(const Activation& input, const ChannelCopy& copy) {
  const int64_t bytes = copy_units(copy) * copy_unit_bytes(copy);
  if (bytes > 0 && input.samples * input.channels > 0) return false;
  if (bytes > 0) std::memset(copy.to, 0, (size_t)bytes);
  return true;
}

Indices resolved(const Tensor& index, int64_t size, const char* op, const char* name) {
  const Tensor from = as_contiguous(index);
  const bool wide = from.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || from.scalar_type() == ScalarType::Int, op, ": ", name, " must be Int or Long, got ",
                  name_of(from.scalar_type()));
  const int64_t rows = from.dim() == 2 ? from.size(0) : 1, columns = from.size(from.dim() - 1);
  Indices to = indices(rows * columns);
  const void* const data = from.const_data_ptr();
  const auto resolve = [&](int64_t begin, int64_t end) {
    const int64_t at = begin * columns, count = (end - begin) * columns;
    const int64_t bad = wide ? resolve_indices((const int64_t*)data + at, count, size, to.get() + at)
                             : resolve_indices((const int32_t*)data + at, count, size, to.get() + at);
    return bad < 0 ? bad : at + bad;
  };
  std::atomic<bool> outside{false};
  for_index_rows(rows, columns, [&](int64_t begin, int64_t end) {
    if (resolve(begin, end) >= 0) outside = true;
  });
  if (outside) {
    const int64_t bad = resolve(0, rows);  // once more, for the first one whatever the threads
    STD_TORCH_CHECK(false, op, ": ", name, " ", shape_of(index), " has index ",
                    wide ? ((const int64_t*)data)[bad] : ((const int32_t*)data)[bad], ", out of range for ", size);
  }
  return to;
}

int64_t channel_count(const Tensor& channels, int64_t samples, const char* op) {
  STD_TORCH_CHECK(channels.dim() == 1 || (channels.dim() == 2 && channels.size(0) == samples), op,
                  ": channels must have shape [channels] or [", samples, ", channels], got ", shape_of(channels));
  const int64_t count = channels.size(channels.dim() - 1);
  check_axis(count, op, "the number of channels");
  return count;
}

}  // namespace maskfuse
