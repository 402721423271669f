// Index tensors on the device, and the look at their values that MASKFUSE_DEBUG asks for.
#include "cuda_channel_index.h"

#include <cstring>

#include "debug.h"

namespace maskfuse {
namespace {

// Waits for the stream. A stream that is captured must not be waited for: nothing then.
std::optional<std::vector<char>> copied_to_host(const Tensor& t) {
  std::vector<char> bytes((size_t)t.numel() * t.element_size());
#ifndef MASKFUSE_SIMT
  cudaStreamCaptureStatus capture;
  check_launch(cudaStreamIsCapturing(current_stream(t), &capture), "MASKFUSE_DEBUG");
  if (capture != cudaStreamCaptureStatusNone) return std::nullopt;
#endif
  read_back(t, 0, (int64_t)bytes.size(), bytes.data(), "MASKFUSE_DEBUG");
  return bytes;
}

template <class Entry>
void check_entries(const Entry* entries, const Tensor& index, int64_t size, bool unique, const char* op,
                   const char* name) {
  for (int64_t i = 0; i < index.numel(); ++i)
    STD_TORCH_CHECK(entries[i] >= -size && entries[i] < size, op, ": ", name, " ", shape_of(index), " has index ",
                    entries[i], ", out of range for ", size);
  const int64_t count = index.size(index.dim() - 1);
  std::vector<bool> seen;
  for (int64_t i = 0; unique && i < index.numel(); ++i) {
    if (i % count == 0) seen.assign((size_t)size, false);
    const auto entry = (size_t)(entries[i] < 0 ? entries[i] + size : entries[i]);
    STD_TORCH_CHECK(!seen[entry], op, ": ", name, " ", shape_of(index), " has an index twice");
    seen[entry] = true;
  }
}

}  // namespace

DeviceIndex device_index(const Tensor* given, int64_t size, bool unique, const char* op, const char* name) {
  if (!given) return {};
  const Tensor& index = *given;
  const bool wide = index.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || index.scalar_type() == ScalarType::Int, op, ": ", name, " must be Int or Long, got ",
                  name_of(index.scalar_type()));
  const Tensor entries = as_contiguous(index);
  if (debugging()) {
    if (const auto bytes = copied_to_host(entries)) {
      if (wide)
        check_entries((const int64_t*)bytes->data(), index, size, unique, op, name);
      else
        check_entries((const int32_t*)bytes->data(), index, size, unique, op, name);
    }
  }
  return {entries, cuda::index_list(entries.const_data_ptr(), wide, size)};
}

}  // namespace maskfuse
