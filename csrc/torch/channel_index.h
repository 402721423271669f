// What the channel ops share on the CPU: index tensors as lists, and running in threads.
#pragma once

#include <atomic>
#include <memory>

#include "../cpu/isa.h"
#include "channel_layout.h"

namespace maskfuse {

// Runs work(begin, end) over all units of a copy, in threads where it is large.
template <class Work>
void for_units(const ChannelCopy& copy, const Work& work) {
  constexpr int64_t kBytesWorthAThread = 1 << 15;
  isa_in_use();  // what is wrong with MASKFUSE_CPU is said here: of a thread's exceptions only that there was one
  const int64_t units = copy_units(copy);
  torch::stable::parallel_for(
      0, units, std::max<int64_t>(1, kBytesWorthAThread / std::max<int64_t>(1, copy_unit_bytes(copy))), work);
}

// Fills `to` where the input has nothing to copy from; returns whether that was so.
bool filled_with_zero(const Activation& input, const ChannelCopy& copy);

using Indices = std::unique_ptr<int32_t[]>;
inline Indices indices(int64_t count) { return Indices(new int32_t[std::max<int64_t>(1, count)]); }

// Runs work(begin, end) over rows of `columns` indices each, in threads where they are many.
template <class Work>
void for_index_rows(int64_t rows, int64_t columns, const Work& work) {
  constexpr int64_t kIndicesWorthAThread = 1 << 14;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kIndicesWorthAThread / std::max<int64_t>(1, columns)),
                              work);
}

// An index tensor, int32 or int64, [count] or [rows, count], with entries in [-size, size), as numbers in [0, size).
Indices resolved(const Tensor& index, int64_t size, const char* op, const char* name);

}  // namespace maskfuse
