// A look at all of a plan, which opening one leaves out: it takes as long as a product of few rows.
#include <algorithm>

#include "mask.h"
#include "masked_linear.h"
#include "masked_linear_packed.h"
#include "masked_linear_plan.h"

namespace maskfuse {
namespace {

// A tile's lists: what they add up to, and whether its rows and columns lie in it.
struct Lists {
  int64_t rows = 0, columns = 0, values = 0, singles = 0;
  bool sound = true;
};

bool below(const uint8_t* numbers, int64_t count, int64_t end) {
  return std::all_of(numbers, numbers + count, [&](uint8_t number) { return number < end; });
}

Lists lists_of(const Plan& plan, const PlanTile& begin, const PlanTile& end) {
  Lists sum;
  for (int64_t i = begin.run; i < end.run; ++i) {
    const PlanRun& run = plan.runs[i];
    sum.sound = sum.sound && (run.width == 1 || run.width == 4) && run.length > 0;
    sum.rows += (int64_t)run.entries * run.width;
    sum.columns += (int64_t)run.entries * run.length;
    sum.values += (int64_t)run.entries * run.length * run.width;
    sum.singles += run.width == 1 ? run.entries : 0;
  }
  return sum;
}

}  // namespace

bool plan_is_sound(const Plan& plan) {
  const PlanHeader& h = *plan.header;
  const int64_t chunks = plan.chunks(), tiles = plan.panels() * chunks;
  const PlanTile &first = plan.tiles[0], &last = plan.tiles[tiles];
  if (first.run != 0 || first.row != 0 || first.column != 0 || first.value != 0) return false;
  if (last.run != h.runs || last.row != h.row_bytes || last.column != h.column_bytes || last.value != h.values)
    return false;
  int64_t singles = 0, most = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const PlanTile &begin = plan.tiles[t], &end = plan.tiles[t + 1];
    // What lies between the first and the last one, which are right.
    if (begin.run > end.run || begin.row > end.row || begin.column > end.column || begin.value > end.value ||
        end.run > h.runs || end.row > h.row_bytes || end.column > h.column_bytes || end.value > h.values)
      return false;
    const Lists sum = lists_of(plan, begin, end);
    const int64_t panel = t / chunks, chunk = t % chunks;
    if (!sum.sound || sum.rows != end.row - begin.row || sum.columns != end.column - begin.column ||
        sum.values != end.value - begin.value ||
        !below(plan.rows + begin.row, sum.rows, std::min(h.panel, h.rows - panel * h.panel)) ||
        !below(plan.columns + begin.column, sum.columns, std::min<int64_t>(h.chunk, h.columns - chunk * h.chunk)))
      return false;
    singles += sum.singles;
    if (chunk == chunks - 1) most = std::max<int64_t>(most, end.value - plan.tiles[panel * chunks].value);
  }
  return singles == h.single_entries && most == h.most_panel_values;
}

bool packed_is_sound(const uint32_t* bits, int64_t rows, int64_t columns, const Packed& packed) {
  const int64_t words = mask_words(columns);
  int64_t active = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (packed.rows[r] != active) return false;
    for (int64_t c = 0; c < columns; ++c) {
      if ((bits[r * words + c / 32] >> (c % 32) & 1) == 0) continue;
      if (active >= packed.rows[rows] || (packed.columns && packed.columns[active] != c)) return false;
      ++active;
    }
  }
  return packed.rows[rows] == active;
}

}  // namespace maskfuse
