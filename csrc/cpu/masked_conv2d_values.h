// What is copied before lanes are worked on: active weights in the order of the plan, and where the line of each of its
// columns is. Included by masked_conv2d_{avx2,avx512}.cpp only.
#pragma once

#include "masked_conv2d.h"
#include "masked_linear_values.h"

namespace maskfuse {
namespace {

// The weight, as kernels of masked_linear.h see it: rows of the plan's index are n.
static inline MaskedGemm weight_problem(const MaskedConv& g) {
  MaskedGemm w{};
  w.pass = g.pass, w.dtype = g.dtype;
  w.n = g.shape.out, w.k = g.shape.columns();
  w.b = g.weight, w.b_ld = g.weight_ld;
  w.bits = g.bits, w.bits_ld = g.bits_ld;
  w.plan = g.plan, w.packed = g.packed;
  w.c = g.weight_grad, w.c_ld = g.weight_grad_ld;
  return w;
}

static inline Tiles tiles_of(const MaskedConv& g) { return Tiles(weight_problem(g), Part{}); }

// What is where in the memory of a call.
struct ConvMemory {
  const int64_t* first;  // staged row that output row 0 reads, for each dy
  const int32_t* lines;  // of each of the weight's columns, in a strip of the input
  uint16_t* offsets;   // of each of the plan's columns, in lines from its chunk's first; of listed values, in elements
  PassedRows* passed;  // of each panel
  const ListColumn* columns;
  uint32_t* bounds;
  char *values, *sums;
  char *input, *output, *map;

  explicit ConvMemory(const ConvPart& part) {
    const ConvSchedule& s = *part.schedule;
    char *const shared = (char*)part.shared, *const scratch = (char*)part.scratch;
    first = (const int64_t*)(shared + s.first_at);
    lines = (const int32_t*)(shared + s.lines_at);
    offsets = (uint16_t*)(shared + s.offsets_at);
    passed = (PassedRows*)(shared + s.passed_at);
    columns = (const ListColumn*)(shared + s.columns_at);
    bounds = (uint32_t*)(shared + s.bounds_at);
    values = shared + s.values_at, sums = shared + s.sums_at;
    input = scratch + s.input_at, output = scratch + s.output_at, map = scratch + s.map_at;
  }
};

// The line where a chunk that begins with `column` begins: its first channel's.
static inline int64_t chunk_line(const MaskedConv& g, const Strips& s, int64_t column) {
  return column / g.shape.taps() * s.plane;
}

// Part: n panels.
static void conv_offsets_task(const MaskedConv& g, const ConvPart& part) {
  const Tiles tiles = tiles_of(g);
  const ConvMemory memory(part);
  Tile tile;
  for (int64_t panel = part.n0; panel < part.n1; ++panel)
    for (int64_t c = 0; c < tiles.chunks(); ++c) {
      tiles.at(panel, c, tile);
      const int64_t first = chunk_line(g, part.schedule->strips, tile.column0);
      uint16_t line[256];
      for (int64_t k = 0; k < tile.width; ++k) line[k] = (uint16_t)(memory.lines[tile.column0 + k] - first);
      uint16_t* const to = memory.offsets + (tile.columns - tiles.plan->columns);
      const PlanTile* const t = tiles.plan->tiles + panel * tiles.chunks() + c;
      for (int64_t k = 0; k < (int64_t)t[1].column - t[0].column; ++k) to[k] = line[tile.columns[k]];
    }
}

// The weights of a panel of the matrix with channels exchanged: row r of it, column (o, tap), is W[o][r][tap].
template <class V, class T>
static void exchanged_values(const MaskedConv& g, const Tiles& tiles, int64_t panel, typename V::S* values) {
  const int64_t taps = g.shape.taps();
  const T* const weight = (const T*)g.weight;
  Tile tile;
  for (int64_t c = 0; c < tiles.chunks(); ++c) {
    tiles.at(panel, c, tile);
    const uint8_t *rows = tile.rows, *columns = tile.columns;
    typename V::S* to = values + tile.value;
    int64_t channel[256], tap[256], at[256];
    for (int64_t k = 0; k < tile.width; ++k) {
      channel[k] = (tile.column0 + k) / taps, tap[k] = (tile.column0 + k) % taps;
      at[k] = channel[k] * g.weight_ld + tap[k];
    }
    // Lists run across the weight's rows, whose parts that the tile reads are fetched one after another first.
    const int64_t tall = min64(tiles.panel, tiles.rows - tile.row0);
    for (int64_t o = channel[0]; o <= channel[tile.width - 1]; ++o)
      fetch<T>(weight + o * g.weight_ld + tile.row0 * taps, tall * taps);
    for (int i = 0; i < tile.run_count; ++i) {
      const PlanRun& run = tile.runs[i];
      for (int e = 0; e < run.entries; ++e, rows += run.width, columns += run.length)
        for (int k = 0; k < run.length; ++k)
          for (int j = 0; j < run.width; ++j) {
            const int64_t row = (tile.row0 + rows[j]) * taps, column = columns[k];
            const bool active = run.exact || (mask_at(g.bits + channel[column] * g.bits_ld, row + tap[column]) & 1);
            *to++ = active ? widen(weight + row + at[column]) : typename V::S(0);
          }
    }
  }
}

static PassedRows passed_rows(const Tiles& tiles, int64_t panel) {
  PassedRows passed{};
  const int64_t tall = min64(tiles.panel, tiles.rows - panel * tiles.panel);
  for (int side = 0; side < 2; ++side) {
    Tile tile;
    tiles.at(panel, side == 0 ? 0 : tiles.chunks() - 1, tile);
    bool listed[256] = {};
    const uint8_t* rows = tile.rows;
    for (int i = 0; i < tile.run_count; ++i)
      for (int n = tile.runs[i].entries * tile.runs[i].width; n > 0; --n) listed[*rows++] = true;
    for (int64_t r = 0; r < tall; ++r)
      if (!listed[r]) passed.rows[side][passed.count[side]++] = (uint8_t)r;
  }
  return passed;
}

// Part: n panels.
template <class V, class T, bool kExchanged>
static void conv_values_task(const MaskedConv& g, const ConvPart& part) {
  const MaskedGemm w = weight_problem(g);
  const Tiles tiles(w, Part{});
  conv_offsets_task(g, part);
  for (int64_t panel = part.n0; panel < part.n1; ++panel) ConvMemory(part).passed[panel] = passed_rows(tiles, panel);
  if (g.packed && g.packed->ordered) return;
  auto* const values = (typename V::S*)ConvMemory(part).values;
  for (int64_t panel = part.n0; panel < part.n1; ++panel) {
    if constexpr (kExchanged)
      exchanged_values<V, T>(g, tiles, panel, values + tiles.ordered(panel));
    else
      panel_values<V, T, false, MaskKind::bits>(w, tiles, panel, values + tiles.ordered(panel));
  }
}

}  // namespace
}  // namespace maskfuse
