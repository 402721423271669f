// Channels picked and put back, of activations [samples, channels, pixels] in float32.
#include <algorithm>

#include "channel_scatter.h"
#include "raw_kernels.h"

namespace maskfuse::raw {
namespace {

// Units that a task copies at least, in bytes.
constexpr int64_t kTaskBytes = 1 << 16;

Array<float> copied(const Array<float>& input, const std::vector<int32_t>& map, bool naive, int threads) {
  check_threads(threads);
  ChannelCopy copy{};
  copy.samples = input.shape(0), copy.channels = (int64_t)map.size(), copy.pixels = input.shape(2);
  copy.element = sizeof(float), copy.channels_last = copy.pixels == 1;
  Array<float> out({copy.samples, copy.channels, copy.pixels});
  copy.from = (const char*)input.data(), copy.from_channels = input.shape(1);
  copy.from_pixel = copy.element, copy.from_channel = copy.pixels * copy.element;
  copy.from_sample = input.shape(1) * copy.from_channel;
  copy.to = (char*)out.mutable_data(), copy.channel = map.data();
  if (input.size() == 0 || out.size() == 0) {
    std::fill(out.mutable_data(), out.mutable_data() + out.size(), 0.0f);
    return out;
  }
  py::gil_scoped_release release;
  const int64_t units = copy_units(copy), each = std::max<int64_t>(1, kTaskBytes / copy_unit_bytes(copy));
  run_tasks((units + each - 1) / each, 0, threads, [&](int64_t i, void*) {
    (naive ? copy_channels_naive : copy_channels)(copy, i * each, std::min(units, (i + 1) * each));
  });
  return out;
}

std::vector<int32_t> resolved(const Array<int32_t>& channels, int64_t size) {
  if (channels.ndim() != 1) throw py::value_error("channels must have one dimension");
  std::vector<int32_t> index((size_t)channels.size());
  if (resolve_indices(channels.data(), channels.size(), size, index.data()) >= 0)
    throw py::value_error("channels must lie in [" + std::to_string(-size) + ", " + std::to_string(size) + ")");
  return index;
}

void check(const Array<float>& input) {
  if (input.ndim() != 3) throw py::value_error("input must have shape [samples, channels, pixels]");
}

Array<float> channel_gather(const Array<float>& input, const Array<int32_t>& channels, bool naive, int threads) {
  check(input);
  return copied(input, resolved(channels, input.shape(1)), naive, threads);
}

Array<float> channel_scatter(const Array<float>& input, const Array<int32_t>& channels, int64_t num_channels,
                             bool naive, int threads) {
  check(input);
  if (num_channels < 0 || channels.size() != input.shape(1))
    throw py::value_error("channels must name a place for each channel of input");
  const std::vector<int32_t> index = resolved(channels, num_channels);
  std::vector<int32_t> first((size_t)num_channels), next(index.size());
  if (invert_indices(index.data(), (int64_t)index.size(), num_channels, first.data(), next.data()))
    throw py::value_error("channels has an index twice");
  return copied(input, first, naive, threads);
}

}  // namespace

void define_channels(py::module_& m) {
  m.def("channel_gather", channel_gather, py::arg("input").noconvert(), py::arg("channels"), py::arg("naive") = false,
        py::arg("threads") = 1, "Some channels, one behind another; see csrc/cpu/channel_gather.h.");
  m.def("channel_scatter", channel_scatter, py::arg("input").noconvert(), py::arg("channels"), py::arg("num_channels"),
        py::arg("naive") = false, py::arg("threads") = 1, "Channels put back among zeros, each once.");
}

}  // namespace maskfuse::raw
