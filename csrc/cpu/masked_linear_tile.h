// A pass's index cut into tiles: those of a plan, or where there is none, lists of everything. Included by
// masked_linear_{avx2,avx512}.cpp only.
#pragma once

#include "masked_linear.h"

namespace maskfuse {
namespace {

static constexpr struct Identity {
  uint8_t number[256];
  constexpr Identity() : number() {
    for (int i = 0; i < 256; ++i) number[i] = (uint8_t)i;
  }
} kIdentity;

// One tile's part of a plan, or the list of everything where there is no plan: all rows four by four, all columns.
struct Tile {
  PlanRun dense[2];  // of a tile without a plan
  const PlanRun* runs;
  int run_count;
  const uint8_t* rows;     // `width` an entry
  const uint8_t* columns;  // one list an entry, or, without a plan, one list for all
  bool one_list;
  int64_t value;                 // where the tile's values begin, in the panel
  int64_t row0, column0, width;  // in the matrix

  // Whether lists hold active columns only: in a plan, entries whose lists do come before others of their width.
  bool exact() const { return run_count == 0 || runs[run_count - 1].exact; }

  int64_t entries() const {
    int64_t count = 0;
    for (int i = 0; i < run_count; ++i) count += runs[i].entries;
    return count;
  }
};

// How the rows and columns of a pass's index are cut. The index's rows are the result's columns.
struct Tiles {
  const Plan* plan;
  int64_t panel, chunk, rows, columns;

  Tiles(const MaskedGemm& g, const Part& part)
      : plan(g.plan),
        panel(g.plan ? g.plan->header->panel : part.panel),
        chunk(g.plan ? g.plan->header->chunk : kDenseChunk),
        rows(g.n),
        columns(g.k) {}

  int64_t chunks() const { return ceil_div(columns, chunk); }

  // Number of values of a panel.
  int64_t values(int64_t p) const {
    if (!plan) return min64(panel, rows - p * panel) * columns;
    const PlanTile* t = plan->tiles + p * chunks();
    return (int64_t)t[chunks()].value - t[0].value;
  }

  // Where a panel's values begin among those of all panels.
  int64_t ordered(int64_t p) const { return (int64_t)plan->tiles[p * chunks()].value + p * kPackedPad; }

  // Entries of panels [begin, end) of a plan.
  int64_t entries(int64_t begin, int64_t end) const {
    int64_t count = 0;
    for (uint32_t i = plan->tiles[begin * chunks()].run; i < plan->tiles[end * chunks()].run; ++i)
      count += plan->runs[i].entries;
    return count;
  }

  // Fills `tile`, whose address the view keeps.
  void at(int64_t p, int64_t c, Tile& tile) const {
    tile.row0 = p * panel, tile.column0 = c * chunk;
    tile.width = min64(chunk, columns - tile.column0);
    if (plan) {
      const PlanTile* t = plan->tiles + p * chunks() + c;
      tile.runs = plan->runs + t[0].run;
      tile.run_count = (int)(t[1].run - t[0].run);
      tile.rows = plan->rows + t[0].row;
      tile.columns = plan->columns + t[0].column;
      tile.value = t[0].value - plan->tiles[p * chunks()].value;
      tile.one_list = false;
      return;
    }
    const int64_t tall = min64(panel, rows - tile.row0);
    tile.run_count = 0;
    if (tall >= 4) tile.dense[tile.run_count++] = {(uint16_t)(tall / 4), (uint16_t)tile.width, 4, 0};
    if (tall % 4) tile.dense[tile.run_count++] = {(uint16_t)(tall % 4), (uint16_t)tile.width, 1, 0};
    tile.runs = tile.dense;
    tile.rows = tile.columns = kIdentity.number;
    tile.value = tile.column0 * tall;
    tile.one_list = true;
  }
};

}  // namespace
}  // namespace maskfuse
