// Index tensors as lists that are known to lie in range.
#include "channel_index.h"

#include <cstring>

namespace maskfuse {

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

}  // namespace maskfuse
