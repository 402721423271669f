// Forward and input_grad of a convolution, the latter in its forward form: every active weight is broadcast and
// multiplies one line of a strip. Included by masked_conv2d_{avx2,avx512}.cpp only.
//
//   once a call: active weights copied in the order of the plan, and for each of its columns the place of its line
//   for a strip, which is one block of lanes (a thread's own)
//     sums of all of the weight's rows, from the bias on                         second-level cache
//     for a chunk of columns: its channels in lanes, a copy for each dx          first-level cache
//       for an entry: sums in registers += weight x line, for its list
//     sums to the image
#pragma once

#include "masked_conv2d_stage.h"
#include "masked_conv2d_values.h"
#include "masked_linear_accumulate.h"

namespace maskfuse {
namespace {

// Part: m strips, n panels.
template <class V, class T>
static void conv_accumulate_task(const MaskedConv& g, const ConvPart& part) {
  using S = typename V::S;
  constexpr int kUnit = kUnitLanes<S>;
  const ConvShape& shape = g.shape;
  const Strips& s = part.schedule->strips;
  const ConvMemory memory(part);
  const Tiles tiles = tiles_of(g);
  const S* const values = g.packed && g.packed->ordered ? (const S*)g.packed->ordered : (const S*)memory.values;
  S *const x = (S*)memory.input, *const y = (S*)memory.output;
  const int64_t row0 = part.n0 * tiles.panel, row1 = min64(part.n1 * tiles.panel, tiles.rows);
  const int64_t entries = 1 + tiles.entries(part.n0, part.n1);
  for (int64_t m = part.m0; m < part.m1;) {
    // Strips below one another have their lanes in the same places.
    Strip strip = strip_at<V>(g, s, m);
    LaneMap<V> from = input_map<V>(g, s, strip, memory.map);
    LaneMap<V> to = output_map<V>(g, s, strip, memory.map + LaneMap<V>::bytes(from.patterns, from.rows));
    for (const int64_t end = min64(part.m1, (m / s.parts + 1) * s.parts); m < end; ++m) {
      strip = strip_at<V>(g, s, m);
      if (strip.rows == 0) continue;
      input_rows<V>(g, s, strip, memory.first, from);
      output_rows<V>(g, s, strip, to);
      for (int64_t r = row0; r < row1; ++r) {
        const auto start = g.bias ? V::set1((S)widen((const T*)g.bias + r)) : V::zero();
        S* const lines = y + (r - row0) * s.out_plane * kUnit;
        for (int64_t i = 0; i < strip.rows * kUnit; i += V::W) V::store(lines + i, start);
      }
      // What this strip writes, and what the next one reads.
      const int64_t ahead = s.pointwise ? strip.rows * kUnit * from.step : strip.rows * shape.stride_h * g.input.y;
      FetchLines write(g.output, sizeof(T), to, 0, row0, row1, entries);
      FetchLines read(g.input, sizeof(T), from, ahead, 0, m + 1 < part.m1 ? shape.in : 0, entries);
      const auto fetch = [&]() __attribute__((always_inline)) { write(), read(); };
      for_vectors<V>(strip.rows * kUnit / V::W, [&](auto number) {
        constexpr int kVectors = decltype(number)::value;
        Tile tile;
        for (int64_t c = 0; c < tiles.chunks(); ++c) {
          const int64_t column = c * tiles.chunk, channel = column / shape.taps();
          const int64_t last = ceil_div(min64(column + tiles.chunk, tiles.columns), shape.taps());
          bool zeros = false;
          for (int64_t panel = part.n0; panel < part.n1; ++panel) {
            tiles.at(panel, c, tile);
            zeros |= !tile.exact();
          }
          stage<V, T>(g.input, from, channel, last, g.plan->column_pattern, shape.taps(), s.plane, zeros, x);
          for (int64_t panel = part.n0; panel < part.n1; ++panel) {
            S* const first = y + (panel * tiles.panel - row0) * s.out_plane * kUnit;
            tiles.at(panel, c, tile);
            accumulate_tile<V, kVectors, kUnit>(
                tile, memory.offsets + (tile.columns - tiles.plan->columns), x, fetch,
                values + tiles.ordered(panel) + tile.value,
                [&](int row) __attribute__((always_inline)) { return first + row * s.out_plane * kUnit; });
          }
        }
      });
      unstage<V, T>(g.output, to, row0, row1 - row0, s.out_plane, y);
    }
  }
}

}  // namespace
}  // namespace maskfuse
