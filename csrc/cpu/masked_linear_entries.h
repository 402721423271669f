// The entries of a plan's tile: which rows share a list of columns, and in which order they come
// (masked_linear_plan.h).
#pragma once

#include <vector>

#include "masked_linear_plan.h"

namespace maskfuse {

inline constexpr int64_t kMostRows = 256, kMostColumns = 256;  // of a tile

// A row's bits in one chunk.
struct Pattern {
  uint32_t words[kMostColumns / 32];
};

struct Entry {
  uint16_t length;
  uint8_t width, exact;
  uint8_t rows[4];
  Pattern columns;
};

// The entries of a tile, in the order of the plan.
void tile_entries(const uint32_t* bits, const PlanHeader& header, int64_t panel, int64_t chunk,
                  std::vector<Entry>& list);

}  // namespace maskfuse
