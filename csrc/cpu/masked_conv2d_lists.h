// Active weights of a convolution as lists, collected from the mask's bits in a call: what the kernel `shifted` walks.
// Included by masked_conv2d_{avx2,avx512}.cpp only.
//
// A list holds the weights of one chunk of the input's channels, one channel of the output and one dx. Lists lie one
// behind another in this order, as values and as places of what each is multiplied with:
//
//   bounds[list] ... bounds[list + 1]    values[], offsets[]
//
// There is room for as many as the plan has. Where more bits are set, the plan is another mask's: the number behind the
// last bound says so, and nothing is computed.
//
// Three phases: lists' lengths, where they begin, what they hold. In input_grad, where channels are exchanged, a row of
// the weight is a channel of the input, and its columns are the output's.
#pragma once

#include "masked_conv2d_values.h"

namespace maskfuse {
namespace {

// Columns found at a time, and room for what is written before it is known whether it counts.
inline constexpr int64_t kFound = 2048, kUnknown = 16;

// Numbers of the bits that are set in columns [begin, end) of a row, at most kFound; returns how many. They are written
// four at a time, whether there are or not, for there to be few branches that depend on the mask.
static inline int64_t find_bits(const uint32_t* bits, int64_t begin, int64_t end, uint32_t* found) {
  int64_t count = 0;
  for (int64_t k = begin / 32 * 32; k < end; k += 64) {
    uint64_t word = bits[k / 32];
    if (k + 32 < end) word |= (uint64_t)bits[k / 32 + 1] << 32;
    if (k < begin) word &= ~uint64_t{0} << (begin - k);
    if (end - k < 64) word &= (uint64_t{1} << (end - k)) - 1;
    const int ones = __builtin_popcountll(word);
    for (int i = 0; i < ones; i += 4)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j, word &= word - 1)
        found[count + i + j] = (uint32_t)k + (uint32_t)__builtin_ctzll(word | uint64_t{1} << 63);
    count += ones;
  }
  return count;
}

// Calls f(row, column) for the active weights of rows [row0, row1) and columns [column0, column1) of the weight.
template <class F>
static inline void for_weights(const MaskedConv& g, int64_t row0, int64_t row1, int64_t column0, int64_t column1,
                               F&& f) {
  uint32_t found[kFound + kUnknown];
  for (int64_t row = row0; row < row1; ++row)
    for (int64_t k = column0; k < column1; k += kFound) {
      const int64_t count = find_bits(g.bits + row * g.bits_ld, k, min64(k + kFound, column1), found);
      for (int64_t i = 0; i < count; ++i) f(row, (int64_t)found[i]);
    }
}

// Part: n channels of the output. Calls f(list, offset, weight) for their active weights.
template <class T, class F>
static inline void for_listed(const MaskedConv& g, const ConvPart& part, F&& f) {
  const ShiftedLanes& s = part.schedule->shifted;
  const ListColumn* const columns = ConvMemory(part).columns;
  const T* const weight = (const T*)g.weight;
  const int64_t taps = g.shape.taps();
  if (g.pass == Pass::forward) {
    for_weights(g, part.n0, part.n1, 0, g.shape.in * taps, [&](int64_t row, int64_t k) __attribute__((always_inline)) {
      f(columns[k].list + row * kShifts, columns[k].offset, weight + row * g.weight_ld + k);
    });
  } else {
    for_weights(g, 0, g.shape.in, part.n0 * taps, part.n1 * taps,
                [&](int64_t row, int64_t k) __attribute__((always_inline)) {
                  f(columns[k].list + row / s.chunk * g.shape.out * kShifts,
                    columns[k].offset + row % s.chunk * s.channel, weight + row * g.weight_ld + k);
                });
  }
}

// Part: n channels of the output.
template <class T>
static void list_lengths_task(const MaskedConv& g, const ConvPart& part) {
  uint32_t* const length = ConvMemory(part).bounds + 1;
  for_listed<T>(g, part, [&](int64_t list, int64_t, const T*) __attribute__((always_inline)) { ++length[list]; });
}

// Whether there are more weights than there is room for. After list_bounds_task.
static inline bool too_many(const MaskedConv& g, const ConvPart& part) {
  return ConvMemory(part).bounds[part.schedule->shifted.lists(g.shape) + 1] != 0;
}

// Leaves in bounds[list + 1] where the list begins.
static void list_bounds_task(const MaskedConv& g, const ConvPart& part) {
  uint32_t* const bounds = ConvMemory(part).bounds;
  const int64_t lists = part.schedule->shifted.lists(g.shape);
  int64_t begin = 0;
  for (int64_t i = 1; i <= lists; ++i) {
    const uint32_t length = bounds[i];
    bounds[i] = (uint32_t)begin;
    begin += length;
  }
  bounds[lists + 1] = begin > g.plan->header->active;
}

// Part: n channels of the output. Leaves in bounds[list + 1] where the list ends.
template <class V, class T>
static void lists_task(const MaskedConv& g, const ConvPart& part) {
  const ConvMemory memory(part);
  auto* const values = (typename V::S*)memory.values;
  if (too_many(g, part)) return;
  for_listed<T>(g, part, [&](int64_t list, int64_t offset, const T* weight) __attribute__((always_inline)) {
    const uint32_t at = memory.bounds[list + 1]++;
    values[at] = widen(weight);
    memory.offsets[at] = (uint16_t)offset;
  });
}

}  // namespace
}  // namespace maskfuse
