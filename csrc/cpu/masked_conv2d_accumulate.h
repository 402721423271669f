// Forward and input_grad of a convolution, the latter in its forward form: every active weight is broadcast and
// multiplies one line of a strip. Included by masked_conv2d_{avx2,avx512}.cpp only.
//
//   once a call: active weights copied in the order of the plan, and for each of its columns the place of its line
//   for a strip, which is one block of lanes (a thread's own)
//     for a chunk of columns: its channels in lanes, a copy for each dx          first-level cache
//       for an entry: sums in registers += weight x line, for its list
//
// Sums begin with the bias in the first chunk, and are kept between chunks in the second-level cache; from the last one
// they go to the image, by way of memory only where channels lie side by side.
#pragma once

#include "masked_conv2d_stage.h"
#include "masked_conv2d_values.h"
#include "masked_linear_accumulate.h"

namespace maskfuse {
namespace {

// The sums of a panel's rows, of a strip, in a chunk: the first, the last, or, unless kEnds, another.
template <class V, class T, bool kEnds>
struct StripSums {
  using S = typename V::S;
  using Reg = typename V::Reg;

  S* lines;  // where they are between chunks, `plane` elements a row
  int64_t plane;
  const T* bias = nullptr;           // [row] or null
  bool first = false, last = false;  // chunk: sums begin, and go to the image
  const LaneMap<V>* to = nullptr;
  T* image = nullptr;  // of row 0
  int64_t image_plane = 0;

  template <int kCount>
  void load(int row, int v, Reg (&sum)[kCount]) const {
    if (kEnds && first) {
      const Reg start = bias ? V::set1((S)widen(bias + row)) : V::zero();
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) sum[i] = start;
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) sum[i] = V::load(lines + row * plane + (v + i) * V::W);
    }
  }

  template <int kCount>
  void store(int row, int v, const Reg (&sum)[kCount]) const {
    if constexpr (kEnds && V::template kMasks<T>) {
      if (last) {
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i) to->store_line(image + row * image_plane, v + i, sum[i]);
        return;
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) V::store(lines + row * plane + (v + i) * V::W, sum[i]);
  }

  // Of a row that has no entry in the first or the last chunk.
  template <int kVectors>
  void pass(int row) const {
    for (int v = 0; v < kVectors; ++v) {
      Reg sum[1];
      load(row, v, sum);
      store(row, v, sum);
    }
  }
};

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
    const bool in_place = V::template kMasks<T> && to.in_spans;
    for (const int64_t end = min64(part.m1, (m / s.parts + 1) * s.parts); m < end; ++m) {
      strip = strip_at<V>(g, s, m);
      if (strip.rows == 0) continue;
      input_rows<V>(g, s, strip, memory.first, from);
      output_rows<V>(g, s, strip, to);
      // What this strip writes, and what the next one reads.
      const int64_t ahead = s.pointwise ? strip.rows * kUnit * from.step : strip.rows * shape.stride_h * g.input.y;
      FetchLines write(g.output, sizeof(T), to, 0, row0, row1, entries);
      FetchLines read(g.input, sizeof(T), from, ahead, 0, m + 1 < part.m1 ? shape.in : 0, entries);
      const auto fetch = [&]() __attribute__((always_inline)) { write(), read(); };
      for_vectors<V>(strip.rows * kUnit / V::W, [&](auto number) {
        constexpr int kVectors = decltype(number)::value;
        Tile tile;
        const int64_t chunks = tiles.chunks();
        for (int64_t c = 0; c < chunks; ++c) {
          const int64_t column = c * tiles.chunk, channel = column / shape.taps();
          const int64_t last = ceil_div(min64(column + tiles.chunk, tiles.columns), shape.taps());
          bool zeros = false;
          for (int64_t panel = part.n0; panel < part.n1; ++panel) {
            tiles.at(panel, c, tile);
            zeros |= !tile.exact();
          }
          stage<V, T>(g.input, from, channel, last, g.plan->column_pattern, shape.taps(), s.plane, zeros, x);
          for (int64_t panel = part.n0; panel < part.n1; ++panel) {
            const int64_t row = panel * tiles.panel, plane = s.out_plane * kUnit;
            S* const lines = y + (row - row0) * plane;
            const T* const bias = g.bias ? (const T*)g.bias + row : nullptr;
            tiles.at(panel, c, tile);
            const auto add = [&](const auto& sums) {
              accumulate_tile<V, kVectors, kUnit>(tile, memory.offsets + (tile.columns - tiles.plan->columns), x, fetch,
                                                  values + tiles.ordered(panel) + tile.value, sums);
            };
            const bool begins = c == 0, ends = in_place && c + 1 == chunks;
            if (!begins && !ends) {
              add(StripSums<V, T, false>{lines, plane});
              continue;
            }
            const StripSums<V, T, true> sums{
                lines, plane, bias, begins, ends, &to, (T*)g.output.data + row * g.output.c, g.output.c};
            add(sums);
            const PassedRows& passed = memory.passed[panel];
            const int side = begins ? 0 : 1;
            for (int i = 0; i < passed.count[side]; ++i) sums.template pass<kVectors>(passed.rows[side][i]);
          }
        }
      });
      if (!in_place) unstage<V, T>(g.output, to, row0, row1 - row0, s.out_plane, y);
    }
  }
}

}  // namespace
}  // namespace maskfuse
